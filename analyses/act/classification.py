"""Text classification by next-token scores: prompts that a label follows, and how well a model chooses it.

A label's score is the log-probability of the last of its tokens at the end of the prompt, over the labels only (Yu et
al. 2024, released code: the argmax over the last token of each label).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from probe.analyses.measures.intervals import bootstrap_mean
from probe.analyses.texts.files import json_lines
from probe.errors import UsageError
from probe.models import Model

# the words of the paper's prompt for SST-2 (its released code), without the blank at the end, which is the label's
PROMPT = (
    "Classify the sentiment of the user's message into one of the following categories:'positive' or 'negative'.\n\n"
    "Sentence: {text}\nSentiment:"
)


@dataclass(frozen=True)
class Example:
    """A prompt, the labels that may follow it (with their leading space), the index of the right one, its split."""

    prompt: str
    labels: tuple[str, ...]
    answer: int
    split: str


def sentiment() -> list[Example]:
    """Return the built-in two-way sentiment task: 24 short reviews to calibrate on, 36 to test on, 40 hard ones.

    They were written for this project. The hard ones are mixed, or ironic, or say with negations what they mean.
    """
    labels = (" negative", " positive")
    return [
        Example(PROMPT.format(text=row["text"]), labels, labels.index(f" {row['label']}"), row["split"])
        for _, row in json_lines(Path(__file__).with_name("reviews.jsonl"))
    ]


def read(path: Path) -> list[Example]:
    """Read examples from JSON lines of "prompt", "labels", "answer" (a label) and "split". Raises UsageError."""
    found = []
    for place, row in json_lines(path):
        try:
            labels = tuple(map(str, row["labels"]))
            found.append(Example(str(row["prompt"]), labels, labels.index(row["answer"]), str(row["split"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'{place}: expected {{"prompt": ..., "labels": [...], "answer": a label, "split": "calibration" or a '
                f"name}} ({type(error).__name__}: {error})"
            ) from None
    check(found, str(path))
    return found


def check(examples: Sequence[Example], name: str) -> None:
    """Raise UsageError unless there are a calibration split and another one, with the same labels throughout."""
    splits = {example.split for example in examples}
    if "calibration" not in splits or len(splits) < 2:
        raise UsageError(
            f'{name}: expected a split "calibration" and at least one other, got {sorted(splits) or "none"}'
        )
    if len({example.labels for example in examples}) > 1:
        raise UsageError(f"{name}: expected the same labels in every line")
    if len(examples[0].labels) < 2:
        raise UsageError(f"{name}: expected at least two labels, got {list(examples[0].labels)}")


class Scorer:
    """Scores the labels of examples with a model, in batches of prompts of one length, which need no padding."""

    def __init__(self, model: Model, examples: Sequence[Example], *, batch_size: int = 16) -> None:
        self._model, self.examples = model, tuple(examples)
        self._labels = torch.tensor(
            [[int(model.tokens(label, bos=False).ids[-1]) for label in self.examples[0].labels]]
        )
        if len(set(self._labels[0].tolist())) < self._labels.shape[1]:
            raise UsageError(f"the labels {list(self.examples[0].labels)} end in the same token: choose others")
        self.tokens = [model.tokens(example.prompt) for example in self.examples]
        by_length: dict[int, list[int]] = {}
        for index, tokens in enumerate(self.tokens):
            by_length.setdefault(len(tokens), []).append(index)
        self._batches = [
            of[start : start + batch_size] for of in by_length.values() for start in range(0, len(of), batch_size)
        ]

    @property
    def answers(self) -> Tensor:
        """Return the index of the right label of each example, [examples]."""
        return torch.tensor([example.answer for example in self.examples])

    def scores(self) -> Tensor:
        """Return log-probabilities over the labels, [examples, labels] float64."""
        found = torch.empty(len(self.examples), self._labels.shape[1], dtype=torch.float64)
        with torch.no_grad():
            for places, scores in self.batches():
                found[places] = scores.cpu()
        return found

    def batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield places of examples and their scores [batch, labels] float64, with gradients where these are enabled."""
        for places in self._batches:
            ids = torch.stack([self.tokens[place].ids for place in places])
            logits = self._model.logits(ids, logits_to_keep=1)[:, -1]
            labels = self._labels.to(logits.device).expand(len(places), -1)
            yield places, logits.gather(1, labels).double().log_softmax(-1)


def measures(scores: Tensor, answers: Tensor) -> dict[str, float]:
    """Return how good label scores are: accuracy, nll in nats with its bootstrap interval over examples, auc, n."""
    each = losses(scores, answers)
    low, high = bootstrap_mean(each)
    return {
        "accuracy": accuracy(scores, answers),
        "nll": float(each.mean()),
        "nll_low": float(low),
        "nll_high": float(high),
        "auc": area_under_curve(scores, answers),
        "n": len(answers),
    }


def accuracy(scores: Tensor, answers: Tensor) -> float:
    """Return the share of examples whose best label is right: [examples, labels], [examples] -> 0 to 1."""
    return float((scores.argmax(-1) == answers).double().mean())


def losses(scores: Tensor, answers: Tensor) -> Tensor:
    """Return the negative log-likelihood of the right label in nats, [examples]."""
    return -scores.log_softmax(-1).gather(-1, answers[:, None])[:, 0]


def area_under_curve(scores: Tensor, answers: Tensor) -> float:
    """Return the ROC AUC of a label's log-odds against the others', mean over labels; 0.5 is chance, one class NaN.

    With two labels, a constant added to the scores of a label does not change it: neither does a shift of the prior.
    """
    from sklearn.metrics import roc_auc_score

    areas = []
    for label in range(scores.shape[1]):
        right = answers == label
        if right.any() and not right.all():
            others = torch.cat([scores[:, :label], scores[:, label + 1 :]], 1)
            areas.append(roc_auc_score(right.numpy(), (scores[:, label] - others.logsumexp(1)).numpy()))
    return float(sum(areas) / len(areas)) if areas else float("nan")


def fitted_bias(scores: Tensor, answers: Tensor) -> Tensor:
    """Return the constants that, added to the label scores, minimise their mean loss: [labels] float64, the first 0.

    This is logistic regression on the scores with slope one, and what a shift of the label prior alone can do.
    """
    bias = torch.zeros(scores.shape[1] - 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = losses(scores + torch.cat([bias.new_zeros(1), bias]), answers).mean() + 1e-6 * bias.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return torch.cat([bias.new_zeros(1), bias.detach()])
