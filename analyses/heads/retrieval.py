"""Retrieval heads: the heads that copy an answer out of a long context (Wu et al. 2024).

A head's score on one needle is the share of the answer that it copied (`heads.retrieval_scores` has the formula), its
score the mean over the needles that the model retrieved, which is a unigram recall of the answer above 0.5. Heads at
0.1 and above are called retrieval heads. Intervals are percentile bootstraps over the retrieved needles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.heads.claims import SPARSE
from probe.analyses.heads.retrieval_scores import SCORES
from probe.analyses.measures.agreement import top_heads
from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean, wilson
from probe.errors import ProbeError
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore
from probe.heads import Head
from probe.saving.manifest import Manifest
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.frame.analysis import Facts

THRESHOLD = 0.1
"""The least score at which the paper calls a head a retrieval head."""

STABLE_TOP, STABLE_SHARED, STABLE_FOR = 20, 19, 6
"""A ranking is stable when STABLE_SHARED of its STABLE_TOP best heads were among the best after each of the last
STABLE_FOR retrieved needles."""

UNITS = {"set": "share of the answer's distinct tokens", "per_step": "copying steps per answer token"}

Sample = dict[str, Any]
"""The record of one needle question, as `needle_runs.put` makes it."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RetrievalHeads(Result):
    """Retrieval scores of every head.

    score, low, high: [layers, heads] float64, the mean over retrieved needles and its 95 % bootstrap interval.
    per_sample: [retrieved needles, layers, heads] float64.
    samples: one row per needle asked (length, depth, family, answer, generated, success, ...).
    n_kv_heads: KV heads per layer. variant: "set" or "per_step".
    stopped_early: whether the ranking was stable before all needles were asked.
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
        """Return the number of heads of the model."""
        return self.score.numel()

    def ranked(self) -> list[Head]:
        """Return every head, best score first; ties by layer, then head."""
        return top_heads(self.score, self.n_heads)

    def top(self, k: int) -> list[Head]:
        """Return the k heads with the highest scores, best first."""
        return self.ranked()[:k]

    def retrieval_heads(self, threshold: float = THRESHOLD) -> list[Head]:
        """Return the heads that score at least the threshold, best first."""
        return [head for head in self.ranked() if self.score[head] >= threshold]

    def by_family(self) -> dict[str, Tensor]:
        """Return the mean score over each family's retrieved needles, [layers, heads]; empty families are left out."""
        families = self.samples.loc[self.samples["success"], "family"].to_numpy()
        return {name: self.per_sample[torch.from_numpy(families == name)].mean(0) for name in dict.fromkeys(families)}

    def accuracy(self) -> dict[str, float]:
        """Return the share of needles retrieved with its Wilson interval: value, low, high, retrieved, asked."""
        retrieved, asked = int(self.samples["success"].sum()), len(self.samples)
        low, high = wilson(retrieved, asked)
        return {"value": retrieved / asked, "low": low, "high": high, "retrieved": retrieved, "asked": asked}

    def to_df(self) -> pd.DataFrame:
        """Return one row per head, best first, with its rank, score, interval, active share and score by family."""
        columns = {
            "score": self.score, "low": self.low, "high": self.high,
            "active_share": (self.per_sample > 0).double().mean(0),  # of the needles, those of which it copied a token
        }  # fmt: skip
        table = head_table(columns | self.by_family(), n_kv_heads=self.n_kv_heads)
        table.insert(0, "rank", range(1, len(table) + 1))
        table.insert(1, "name", [str(Head(*place)) for place in zip(table["layer"], table["head"], strict=True)])
        return table

    def figures(self) -> dict[str, Plot]:
        """Return heads (a map), curve (sorted scores), accuracy (length x depth) and families (one against another)."""
        from probe.analyses.heads.retrieval_figures import accuracy_map, family_scatter, head_map, score_curve

        drawn = {"heads": head_map(self), "curve": score_curve(self), "accuracy": accuracy_map(self)}
        if len(self.by_family()) == 2:
            drawn["families"] = family_scatter(self)
        return drawn

    def summary(self) -> tuple[str, ...]:
        """Return what the model retrieved and how many heads copied it, in sentences."""
        accuracy, found = self.accuracy(), len(self.retrieval_heads())
        always = int((self.per_sample > 0).all(0).sum())
        early = ""
        if self.stopped_early:
            early = ", and the run stopped there because the ranking of the 20 best heads was stable"
        return (
            f"The model retrieved {accuracy['retrieved']} of {accuracy['asked']} needles{early}. "
            f"{found} of {self.n_heads} heads ({found / self.n_heads:.1%}) score at least 0.1, which makes them "
            f"retrieval heads; {always} copied a token of every retrieved needle.",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return whether retrieval heads are few; the interval comes from drawing the retrieved needles anew."""
        share = float((self.score >= THRESHOLD).double().mean())
        found = Estimate(share, *_share_interval(self.per_sample), n=len(self.per_sample))
        return (self.finding(SPARSE, found),)

    def head_scores(self) -> dict[str, HeadScore]:
        """Return the retrieval score with its interval."""
        sign = "higher: the head copies more of the answer"
        return {
            "retrieval": HeadScore(values=self.score, unit=UNITS[self.variant], sign=sign, low=self.low, high=self.high)
        }


def scored(samples: Sequence[Sample], facts: Facts, *, variant: str) -> list[Tensor]:
    """Return the scores of every head, [layers, heads] float64, on each needle that was retrieved."""
    return [_score(sample, facts, variant) for sample in samples if sample["success"]]


def retrieval_heads(
    samples: Sequence[Sample], facts: Facts, manifest: Manifest, *, variant: str, stopped_early: bool = False
) -> RetrievalHeads:
    """Return the result of these needle questions; raise ProbeError where the model retrieved none of them."""
    check_retrieved(samples, facts)
    per_sample = torch.stack(scored(samples, facts, variant=variant))
    low, high = bootstrap_mean(per_sample)
    return RetrievalHeads(
        manifest=manifest,
        score=per_sample.mean(0),
        low=low,
        high=high,
        per_sample=per_sample,
        samples=pd.DataFrame(list(samples)).drop(columns=["answer_ids", "emitted", "copied"]),
        n_kv_heads=facts.n_kv_heads,
        variant=variant,
        stopped_early=stopped_early,
    )


def check_retrieved(samples: Sequence[Sample], facts: Facts) -> None:
    """Raise ProbeError where the model retrieved none of the needles, so that no head has a score."""
    if not any(sample["success"] for sample in samples):
        first = samples[0]
        raise ProbeError(
            f"{facts.name} retrieved none of {len(samples)} needles, so no head can be scored (expected "
            f"{first['answer']!r}, got {first['generated'].strip()!r}): give shorter --lengths or another "
            "--prompt-style"
        )


def is_stable(scores: Sequence[Tensor]) -> bool:
    """Return whether the ranking has settled: scores [layers, heads] of the retrieved needles, in the order asked."""
    if len(scores) <= STABLE_FOR:
        return False
    flat = torch.stack(list(scores)).flatten(1).cumsum(0)[-STABLE_FOR - 1 :]
    k = min(STABLE_TOP, flat.shape[1])
    shared = min(STABLE_SHARED, k)
    tops = [set(row.argsort(descending=True, stable=True)[:k].tolist()) for row in flat]
    return all(len(tops[-1] & earlier) >= shared for earlier in tops[:-1])


def _score(sample: Sample, facts: Facts, variant: str) -> Tensor:
    emitted = torch.tensor(sample["emitted"])
    copies = torch.zeros(len(emitted), facts.n_layers, facts.n_heads, dtype=torch.bool)
    for step, layer, head in sample["copied"]:
        copies[step, layer, head] = True
    return SCORES[variant](copies, emitted, torch.tensor(sample["answer_ids"]))


def _share_interval(per_sample: Tensor, *, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the share of heads at the threshold; NaN for a single needle."""
    count = len(per_sample)
    if count < 2:
        return torch.nan, torch.nan
    picks = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
    shares = torch.stack([(per_sample[pick].mean(0) >= THRESHOLD).double().mean() for pick in picks])
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
