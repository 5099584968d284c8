"""Two score maps against each other, head by head: of two runs, two checkpoints of one architecture, or two scores.

Wu et al. (2024) call retrieval heads intrinsic because the maps of one model family correlate (Pearson's r of 0.89 to
0.96 in their released scores, for base and chat or dense and mixture models) and those of other families do not (0).
The layers and heads of both models must match one to one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from probe.analyses.measures.agreement import correlate, shared_top
from probe.analyses.measures.head_tables import head_table
from probe.errors import UsageError
from probe.frame.scores import label
from probe.frame.tables import decimal
from probe.heads import Head
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Comparison(Result):
    """Agreement of the maps a and b [layers, heads] over the heads that have both scores; the manifest is a's run's.

    kind: the score compared. a_name, b_name: of the runs. pearson (low, high: 95 % bootstrap over heads), spearman.
    shared: heads in the top k of both, a's best first. expected: the number that two random lists share. chance: the
    probability that two random lists share at least len(shared) heads.
    """

    kind: str
    a_name: str
    b_name: str
    a: Tensor
    b: Tensor
    pearson: float
    low: float
    high: float
    spearman: float
    k: int
    shared: tuple[Head, ...]
    expected: float
    chance: float

    def summary(self) -> tuple[str, ...]:
        """Return the correlation, and the number of shared top heads beside chance, in one sentence."""
        return (
            f"The {label(self.kind)} scores of {self.a_name} and {self.b_name} correlate at {decimal(self.pearson)}; "
            f"the two runs share {len(self.shared)} of their top {self.k} heads ({self.expected:.1f} by chance).",
        )

    def to_df(self) -> pd.DataFrame:
        """Return one row per head, a's best first: layer, head, scores, ranks (1 is best; NaN is none), shared."""
        table = head_table({"a": self.a, "b": self.b})
        by_place = table.sort_values(["layer", "head"])  # of equal scores, the lower layer and head ranks first
        for run in "ab":
            table[f"{run}_rank"] = by_place[run].rank(ascending=False, method="first")
        heads = zip(table["layer"], table["head"], strict=True)
        return table.assign(shared=[head in self.shared for head in heads])

    def figures(self) -> dict[str, Plot]:
        from probe.figures.heads import scatter_figure

        return {
            "comparison": scatter_figure(
                self.a,
                self.b,
                x_name=f"{label(self.kind)} score, {self.a_name}",
                y_name=f"{label(self.kind)} score, {self.b_name}",
                headline=f"The runs share {len(self.shared)} of their top {self.k} {label(self.kind)} heads",
                reading=f"Pearson {decimal(self.pearson)} [{decimal(self.low)}, {decimal(self.high)}], "
                f"Spearman {decimal(self.spearman)}. Shared heads are in colour; chance gives {self.expected:.1f}.",
                marked=self.shared,
            )
        }


def compare(a: Result, b: Result, *, kind: str = "retrieval", k: int = 20) -> Comparison:
    """Return how the scores of two results agree: results of `heads.run`, or their retrieval heads or catalogues.

    kind: which score, where a result holds several. k: length of the lists of top heads, at most all heads.
    Raises UsageError where a result lacks the score or the models' layers and heads differ.
    """
    first, second = score_map(a, kind), score_map(b, kind)
    found = correlate(first, second)
    top = shared_top(first, second, min(k, found.heads))
    names = [a.manifest.name, b.manifest.name]
    if names[0] == names[1]:
        names = [f"{result.manifest.name} ({result.manifest.fingerprint()[:6]})" for result in (a, b)]
    options = {"kind": kind, "k": top.k, "a": a.manifest.fingerprint(), "b": b.manifest.fingerprint()}
    return Comparison(
        manifest=replace(a.manifest, analysis="comparison", options=options), kind=kind, a_name=names[0],
        b_name=names[1], a=first, b=second, pearson=found.pearson, low=found.low, high=found.high,
        spearman=found.spearman, k=top.k, shared=top.heads, expected=top.expected, chance=top.chance,
    )  # fmt: skip


def score_map(result: Result, kind: str) -> Tensor:
    """Return the map [layers, heads] of one score of a result; raise UsageError where it has no such score."""
    scores = result.head_scores()
    if kind not in scores:
        raise UsageError(f"expected one of the scores {', '.join(scores) or '(none)'}, got {kind!r}")
    return scores[kind].values
