"""The catalogue: every head of a model with all its scores in one table, and how the scores go together.

Beside the retrieval score stand the scores that explain it: induction, previous-token and duplicate-token patterns, the
copying score of the OV circuit, and the attention sink. Where the retrieval map follows the induction map, the
retrieval heads of the model are mostly its induction heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from probe.analyses.heads.claims import INDUCTION
from probe.analyses.measures.agreement import correlate, top_heads
from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore, label
from probe.frame.tables import Table, columns, decimal, percent
from probe.heads import Head
from probe.saving.manifest import Manifest
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

SCORES = {
    "retrieval": (
        "share of the answer", "higher: the head copies more of the answer",
        "the part of the answer that the head copied, a mean over the retrieved needles: distinct answer tokens over "
        "all distinct ones (--score set), or copying steps over answer tokens (per_step); [..]: its 95% interval",
    ),
    "induction": (
        "mean attention weight, 0 to 1", "higher: attends to what followed the same token before",
        "mean weight on the token after the earlier occurrence of the current token, over the second copy of random "
        "tokens",
    ),
    "previous_token": (
        "mean attention weight, 0 to 1", "higher: attends to the previous token",
        "mean weight on the token before, over all queries but the first",
    ),
    "duplicate_token": (
        "mean attention weight, 0 to 1", "higher: attends to the earlier occurrence of the same token",
        "mean weight on the earlier occurrence of the current token, over the second copy of random tokens",
    ),
    "copying": (
        "sum of the eigenvalues' real parts over the sum of their magnitudes, -1 to 1",
        "positive: attending to a token raises its logit; negative: lowers it",
        "sum of the real parts of the OV circuit's eigenvalues over the sum of their magnitudes: 1 raises the logit of "
        "the token attended to, -1 lowers it",
    ),
    "sink": (
        "mean attention weight, 0 to 1", "higher: attends to the first position",
        "mean weight on the first position in prose, over all queries but the first",
    ),
}  # fmt: skip
"""Score -> its unit, its sign, and what the column of the table says."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadCatalogue(Result):
    """Scores of every head by name; heads are ordered by the first of them, best first.

    scores, low, high: name -> [layers, heads], the score and its 95 % bootstrap interval over samples; bounds are NaN
        for a score computed from the weights (copying), a score is NaN for a head from which it could not be read.
    per_sample: name -> [samples, layers, heads], of which the sampled scores are means.
    correlations: one row per pair of scores: a, b, pearson with low and high, spearman, heads.
    notes: which norm gains are folded in, which heads could not be read.
    """

    scores: dict[str, Tensor]
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    per_sample: dict[str, Tensor]
    correlations: pd.DataFrame
    notes: tuple[str, ...]
    n_kv_heads: int

    def correlation(self, a: str, b: str) -> dict[str, float] | None:
        """Return the row of `correlations` of two scores, in either order; None where there is none."""
        table = self.correlations
        rows = table[((table["a"] == a) & (table["b"] == b)) | ((table["a"] == b) & (table["b"] == a))]
        return None if rows.empty else rows.iloc[0].drop(["a", "b"]).to_dict()

    def top(self, kind: str, k: int) -> list[Head]:
        """Return the k heads with the highest score of this kind, best first."""
        return top_heads(self.scores[kind], k)

    def to_df(self) -> pd.DataFrame:
        """Return one row per head, best first: layer, head, kv_group, each score, and _low and _high if sampled."""
        found: dict[str, Tensor] = {}
        for kind, score in self.scores.items():
            found[kind] = score
            if kind in self.per_sample:
                found |= {f"{kind}_low": self.low[kind], f"{kind}_high": self.high[kind]}
        return head_table(found, n_kv_heads=self.n_kv_heads)

    def tables(self) -> dict[str, Table]:
        """Return the table of heads."""
        rows = self.to_df()
        rows.insert(0, "name", [str(Head(*place)) for place in zip(rows["layer"], rows["head"], strict=True)])
        interval = {"retrieval": ("retrieval_low", "retrieval_high")}
        scores = {kind: (label(kind), decimal, *interval.get(kind, ())) for kind in self.scores}
        said = "; ".join(f"{label(kind)}: {SCORES[kind][2]}" for kind in self.scores)
        meaning = f"head: layer and index, both from 0; KV: the key-value head that it reads; {said}"
        shown = columns(name="head", kv_group="KV", **scores)
        return {"heads": Table(rows=rows, columns=shown, meaning=meaning, top=20)}

    def summary(self) -> tuple[str, ...]:
        """Return in sentences how retrieval and induction correlate, the mean sink score, and the notes."""
        said = []
        pair = self.correlation("retrieval", "induction")
        if pair is not None:
            said.append(
                f"The retrieval and induction scores of the heads correlate at {decimal(pair['pearson'])} "
                f"[{decimal(pair['low'])}, {decimal(pair['high'])}]: the retrieval heads {_reading(pair['pearson'])}."
            )
        if "sink" in self.scores:
            share = percent(float(self.scores["sink"].mean()))
            said.append(f"{share} of the attention goes to the first position, a mean over heads and prose.")
        return (*said, *self.notes)

    def findings(self) -> tuple[Finding, ...]:
        """Return whether retrieval heads are mostly induction heads; none where one of the scores is missing."""
        pair = self.correlation("retrieval", "induction")
        if pair is None:
            return ()
        found = Estimate(pair["pearson"], pair["low"], pair["high"], n=int(pair["heads"]))
        return (self.finding(INDUCTION, found),)

    def head_scores(self) -> dict[str, HeadScore]:
        """Return every score, with its interval where it was sampled."""
        found = {}
        for kind, values in self.scores.items():
            unit, sign, _ = SCORES[kind]
            low, high = (self.low[kind], self.high[kind]) if kind in self.per_sample else (None, None)
            found[kind] = HeadScore(values=values, unit=unit, sign=sign, low=low, high=high)
        return found

    def figures(self) -> dict[str, Plot]:
        """Return maps (every score by layer and head), retrieval_induction and correlations (all pairs of scores)."""
        from probe.figures.heads import correlation_figure, map_figure, scatter_figure

        pair = self.correlation("retrieval", "induction")
        name = self.manifest.name
        claim = (
            f"What the heads of {name} do"
            if pair is None
            else f"In {name}, retrieval heads {_reading(pair['pearson'])}"
        )
        drawn = {
            "maps": map_figure(
                self.scores,
                headline=claim,
                reading="Each cell is a head: its retrieval score, its mean attention on a pattern or on position 0, "
                "or its OV copying score.",
            )
        }
        if pair is not None:
            drawn["retrieval_induction"] = scatter_figure(
                self.scores["induction"],
                self.scores["retrieval"],
                x_name="induction score",
                y_name="retrieval score",
                headline=claim,
                reading=f"Pearson {decimal(pair['pearson'])} [{decimal(pair['low'])}, {decimal(pair['high'])}], "
                f"Spearman {decimal(pair['spearman'])}. The ten best retrieval heads are in colour.",
                marked=self.top("retrieval", 10),
                labels=10,
            )
        if len(self.scores) > 2:
            drawn["correlations"] = correlation_figure(self.correlations, list(self.scores), name=name)
        return drawn


def catalogue(
    samples: Mapping[str, Tensor],
    manifest: Manifest,
    *,
    n_kv_heads: int,
    computed: Mapping[str, Tensor] | None = None,
    notes: Sequence[str] = (),
) -> HeadCatalogue:
    """Return the catalogue of these scores, in the order of SCORES.

    samples: name -> [samples, layers, heads]. computed: name -> [layers, heads], scores without samples. Intervals are
    bootstraps with the manifest's seed.
    """
    known = {kind: each.mean(0) for kind, each in samples.items()} | dict(computed or {})
    scores = {kind: known[kind] for kind in SCORES if kind in known}
    bounds = {kind: bootstrap_mean(samples[kind], seed=manifest.seed) for kind in scores if kind in samples}
    return HeadCatalogue(
        manifest=manifest,
        scores=scores,
        low={kind: low for kind, (low, _) in bounds.items()},
        high={kind: high for kind, (_, high) in bounds.items()},
        per_sample={kind: samples[kind] for kind in bounds},
        correlations=correlation_table(scores),
        notes=tuple(notes),
        n_kv_heads=n_kv_heads,
    )


def correlation_table(scores: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return one row per pair of maps [layers, heads]: a, b, pearson, low, high, spearman, heads."""
    columns = ["a", "b", "pearson", "low", "high", "spearman", "heads"]
    pairs = [{"a": a, "b": b} | asdict(correlate(scores[a], scores[b])) for a, b in combinations(scores, 2)]
    return pd.DataFrame(pairs, columns=columns)


def _reading(pearson: float) -> str:
    """Say in words what the correlation of the retrieval with the induction map means."""
    if pearson >= 0.8:
        return "are mostly induction heads"
    if pearson >= 0.5:
        return "are partly induction heads"
    return "are not simply induction heads"
