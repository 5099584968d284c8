"""The scores of a model on a task: accuracy over the vocabulary, between two answers and among the choices; LD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.analyses.measures.intervals import bootstrap_mean, wilson
from probe.frame.findings import Estimate

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy on `prompts` clean prompts: shares with Wilson intervals, mean LD (in logits) with a bootstrap interval.

    top1: good is first in the whole vocabulary. good_over_bad: logit(good) > logit(bad). best: good is first among the
    `choices`, None where the prompts have none; its chance is 1 / choices. ld_sd: standard deviation over prompts, NaN
    for one.
    """

    prompts: int
    top1: Estimate
    good_over_bad: Estimate
    best: Estimate | None
    choices: int
    ld: Estimate
    ld_sd: float

    def to_dict(self) -> dict[str, float | int | None]:
        """Return one flat row: each estimate with its _low and _high."""
        row: dict[str, float | int | None] = {"prompts": self.prompts, "choices": self.choices}
        for name in ("top1", "good_over_bad", "best", "ld"):
            for part, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[f"{name}{end}"] = getattr(getattr(self, name), part, None)
        return row | {"ld_sd": self.ld_sd}


def score(pairs: Pairs, logits: Tensor, *, seed: int = 0) -> Accuracy:
    """Return accuracy from the clean logits at END, [prompts, vocab]. An answer that ties with another is not first."""
    logits = logits.detach().float().cpu()
    good = logits.gather(1, pairs.good[:, None])
    difference = pairs.logit_difference(logits).double()
    best = None
    if pairs.choices is not None:
        others = logits.gather(1, pairs.choices).masked_fill(pairs.choices == pairs.good[:, None], -torch.inf)
        best = _share((good > others).all(1))
    low, high = bootstrap_mean(difference, seed=seed)
    return Accuracy(
        prompts=len(pairs),
        # exactly one token, good itself, is as high as good
        top1=_share((logits >= good).sum(1) == 1),
        good_over_bad=_share(difference > 0),
        best=best,
        choices=0 if pairs.choices is None else pairs.choices.shape[1],
        ld=Estimate(float(difference.mean()), float(low), float(high), n=len(pairs)),
        ld_sd=float(difference.std()) if len(pairs) > 1 else float("nan"),
    )


@torch.no_grad()
def accuracy(model: Model, pairs: Pairs, *, batch: int = 16, seed: int = 0) -> Accuracy:
    """Return how a model answers the clean prompts, in batches of similar length; interventions in force apply."""
    logits: Tensor | None = None
    for rows, part in pairs.batches(batch):
        found = model.logits(part.clean, padding=part.padding, logits_to_keep=1)[:, -1].float().cpu()
        logits = torch.empty(len(pairs), found.shape[1]) if logits is None else logits
        logits[rows] = found
    assert logits is not None
    return score(pairs, logits, seed=seed)


def _share(right: Tensor) -> Estimate:
    low, high = wilson(int(right.sum()), len(right))
    return Estimate(float(right.double().mean()), low, high, n=len(right))
