"""Retrieval heads: the heads that copy an answer out of a long context.

A needle, a sentence with an answer in it, is hidden in prose; the model is asked for the answer and decodes greedily.
A head's score on one needle is the share of the answer that it copied (`heads.retrieval_scores`), its score
the mean over the needles that the model retrieved (unigram recall above 0.5). Heads at 0.1 and above are called
retrieval heads.

Wu, Wang, Xiao, Peng, Fu: Retrieval Head Mechanistically Explains Long-Context Factuality, 2024. We differ from the
released code where it is wrong: answers are found by characters instead of ids, depths are exact for every tokenizer, a
repeated copy does not count twice (`score="per_step"` restores that), and a model that retrieves nothing is an error,
not zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.heads.needle_runs import Plan, put
from probe.analyses.heads.needles import FAMILIES, Needle
from probe.analyses.heads.retrieval_scores import SCORES
from probe.analyses.measures.intervals import bootstrap_mean, wilson
from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import ProbeError, UsageError
from probe.heads import Head
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, carry_out, config_of
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model

THRESHOLD = 0.1
"""The score from which on the paper calls a head a retrieval head."""

STABLE_TOP, STABLE_SHARED, STABLE_FOR = 20, 19, 6
"""A list is stable when, over this many retrieved needles in a row, so many of the top so many heads stay the same."""

Sample = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RetrievalHeads(Result):
    """Retrieval scores of every head.

    score, low, high: [layers, heads] float64, the mean over retrieved needles and its 95 % bootstrap interval.
    per_sample: [retrieved needles, layers, heads] float64.
    samples: one row per needle asked (length, depth, family, answer, generated, success, ...).
    n_kv_heads: KV heads per layer. variant: "set" or "per_step".
    stopped_early: whether the list was stable before all needles were asked.
    """

    score: Tensor
    low: Tensor
    high: Tensor
    per_sample: Tensor
    samples: pd.DataFrame
    n_kv_heads: int
    variant: str
    stopped_early: bool

    @property
    def n_heads(self) -> int:
        """All heads of the model."""
        return self.score.numel()

    @property
    def active_share(self) -> Tensor:
        """Share of the retrieved needles of which each head copied something: [layers, heads] float64."""
        return (self.per_sample > 0).double().mean(0)

    def ranked(self) -> list[Head]:
        """Every head, best score first; ties by layer, then head."""
        order = self.score.flatten().argsort(descending=True, stable=True).tolist()
        return [Head(*divmod(index, self.score.shape[1])) for index in order]

    def top(self, k: int) -> list[Head]:
        """The k heads with the highest scores, best first."""
        return self.ranked()[:k]

    def retrieval_heads(self, threshold: float = THRESHOLD) -> list[Head]:
        """The heads that score at least the threshold, best first."""
        return [head for head in self.ranked() if self.score[head] >= threshold]

    def always_active(self) -> list[Head]:
        """The heads that copied something of every retrieved needle, best first."""
        active = self.active_share
        return [head for head in self.ranked() if active[head] == 1]

    def kv_group(self, head: Head) -> int:
        """The KV head that a query head reads."""
        return head.head // (self.score.shape[1] // self.n_kv_heads)

    def by_family(self) -> dict[str, Tensor]:
        """Mean score over the retrieved needles of each family, [layers, heads]; a family without any is left out."""
        families = self.samples.loc[self.samples["success"], "family"].to_numpy()
        return {name: self.per_sample[torch.from_numpy(families == name)].mean(0) for name in dict.fromkeys(families)}

    def accuracy(self) -> dict[str, float]:
        """Share of needles retrieved with its Wilson interval: value, low, high, retrieved, asked."""
        retrieved, asked = int(self.samples["success"].sum()), len(self.samples)
        low, high = wilson(retrieved, asked)
        return {"value": retrieved / asked, "low": low, "high": high, "retrieved": retrieved, "asked": asked}

    def to_df(self) -> pd.DataFrame:
        """One row per head, best first: head, layer, index in the layer, KV group, score with interval, activity."""
        active, families = self.active_share, self.by_family()
        rows = []
        for rank, head in enumerate(self.ranked(), start=1):
            row = {
                "rank": rank,
                "name": str(head),
                "layer": head.layer,
                "head": head.head,
                "kv_group": self.kv_group(head),
                "score": float(self.score[head]),
                "low": float(self.low[head]),
                "high": float(self.high[head]),
                "active_share": float(active[head]),
            }
            rows.append(row | {name: float(score[head]) for name, score in families.items()})
        return pd.DataFrame(rows)

    def figures(self) -> dict[str, Plot]:
        """heads: layers x heads map. curve: sorted scores. accuracy: length x depth. families: one against another."""
        from probe.analyses.heads.retrieval_figures import accuracy_map, family_scatter, head_map, score_curve

        drawn = {"heads": head_map(self), "curve": score_curve(self), "accuracy": accuracy_map(self)}
        if len(self.by_family()) == 2:
            drawn["families"] = family_scatter(self)
        return drawn


def options(
    *,
    lengths: Sequence[int] = (300, 600, 1000, 1500),
    depths: Sequence[float] = (10, 50, 90),
    families: Sequence[str] = tuple(FAMILIES),
    needles: Sequence[Needle] | None = None,
    samples: int = 1,
    haystack: Haystack | None = None,
    seed: int = 0,
    prompt: Literal["chat", "plain"] = "chat",
    max_new_tokens: int = 24,
) -> Plan:
    """The needle questions that `run` asks when given the same options; its `config()` names a run folder."""
    return Plan(
        haystack=language_reference() if haystack is None else haystack,
        lengths=tuple(lengths),
        depths=tuple(depths),
        families=tuple(families),
        needles=None if needles is None else tuple(needles),
        samples=samples,
        seed=seed,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )


def run(
    model: Model,
    *,
    lengths: Sequence[int] = (300, 600, 1000, 1500),
    depths: Sequence[float] = (10, 50, 90),
    families: Sequence[str] = tuple(FAMILIES),
    needles: Sequence[Needle] | None = None,
    samples: int = 1,
    haystack: Haystack | None = None,
    seed: int = 0,
    prompt: Literal["chat", "plain"] = "chat",
    score: Literal["set", "per_step"] = "set",
    max_new_tokens: int = 24,
    until_stable: bool = False,
    out: RunFolder | str | Path | None = None,
    progress: Progress | None = None,
) -> RetrievalHeads:
    """Retrieval scores of every head of the model.

    lengths: tokens of prose and needle; the prompt adds about 60. depths: percent of the prose before the needle.
    needles: own ones (`read_needles`) instead of the families "numbers" and "activities". samples: needles per length,
    depth and family, each time in other prose. haystack: default the language reference of CPython.
    until_stable: stop once the top 20 no longer change. out: a folder to continue from and to save in.
    progress: called with (needles done, needles planned).
    Raises UsageError for a prompt beyond the context or a haystack too short, ProbeError if no needle is retrieved.
    """
    plan = options(
        lengths=lengths, depths=depths, families=families, needles=needles, samples=samples, haystack=haystack,
        seed=seed, prompt=prompt, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    if score not in SCORES:
        raise UsageError(f"--score: expected set or per_step, got {score!r}")
    plan.check(model)
    return carry_out(
        RetrievalHeads,
        out,
        lambda: run_config(model, plan, score=score, until_stable=until_stable),
        lambda folder: _measured(model, plan, score, until_stable, folder, progress),
    )


def run_config(model: Model, plan: Plan, *, score: str = "set", until_stable: bool = False) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "retrieval_heads", {"score": score, "until_stable": until_stable, **plan.config()})


def _measured(
    model: Model, plan: Plan, score: str, until_stable: bool, folder: RunFolder | None, progress: Progress | None
) -> RetrievalHeads:
    recorder = Recorder(
        model,
        analysis="retrieval_heads",
        options={**plan.config(), "score": score, "until_stable": until_stable},
        seed=plan.seed,
        before=0.0 if folder is None else folder.seconds,
    )
    done: list[Sample] = [] if folder is None else folder.samples()
    scores = [_score(model, sample, score) for sample in done if sample["success"]]
    stopped = until_stable and is_stable(scores)
    position = 0
    for length, repeat in plan.groups():
        if stopped or position + plan.per_group <= len(done):
            position += plan.per_group
            continue
        group = plan.group(model, length, repeat)
        read = group.read(model)
        for prompt in group.prompts:
            position += 1
            if position <= len(done):
                continue
            sample = put(model, prompt, group.cache(model, read, prompt), max_new_tokens=plan.max_new_tokens)
            if folder is not None:
                folder.append(sample)
            done.append(sample)
            if progress is not None:
                progress(position, len(plan))
            if sample["success"]:
                scores.append(_score(model, sample, score))
                stopped = until_stable and is_stable(scores)
            if stopped:
                break
    return _result(model, done, scores, score, stopped and len(done) < len(plan), recorder)


def _result(
    model: Model, done: list[Sample], scores: list[Tensor], variant: str, stopped: bool, recorder: Recorder
) -> RetrievalHeads:
    if not scores:
        raise ProbeError(
            f"{model.name} retrieved none of {len(done)} needles, so no head can be scored (expected "
            f"{done[0]['answer']!r}, got {done[0]['generated'].strip()!r}): try shorter --lengths or another --prompt"
        )
    per_sample = torch.stack(scores)
    low, high = bootstrap_mean(per_sample)
    table = pd.DataFrame(done).drop(columns=["answer_ids", "emitted", "copied"])
    return RetrievalHeads(
        manifest=recorder.manifest(prompts=[sample["prompt"] for sample in done], bos=done[0]["bos"]),
        score=per_sample.mean(0),
        low=low,
        high=high,
        per_sample=per_sample,
        samples=table,
        n_kv_heads=model.n_kv_heads,
        variant=variant,
        stopped_early=stopped,
    )


def _score(model: Model, sample: Sample, variant: str) -> Tensor:
    """The sample's score of every head: [layers, heads] float64."""
    emitted = torch.tensor(sample["emitted"])
    copies = torch.zeros(len(emitted), model.n_layers, model.n_heads, dtype=torch.bool)
    for step, layer, head in sample["copied"]:
        copies[step, layer, head] = True
    return SCORES[variant](copies, emitted, torch.tensor(sample["answer_ids"]))


def is_stable(scores: Sequence[Tensor]) -> bool:
    """Whether the list of top heads has settled: per-sample scores, each [layers, heads], in the order they came."""
    if len(scores) <= STABLE_FOR:
        return False
    flat = torch.stack(list(scores)).flatten(1).cumsum(0)[-STABLE_FOR - 1 :]
    k = min(STABLE_TOP, flat.shape[1])
    shared = min(STABLE_SHARED, k)
    tops = [set(row.argsort(descending=True, stable=True)[:k].tolist()) for row in flat]
    return all(len(tops[-1] & earlier) >= shared for earlier in tops[:-1])
