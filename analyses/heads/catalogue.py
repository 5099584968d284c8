"""The catalogue: every head of a model with all its scores in one table, and how the scores go together.

Beside the retrieval score (`probe.analyses.heads.retrieval`, handed in) stand the scores that explain it: induction,
previous-token and duplicate-token patterns, the copying score of the OV circuit, and the attention sink. A retrieval
map that follows the induction map says that the retrieval heads of this model are mostly its induction heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.heads import copying, sink_scores
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.measures.agreement import correlate, top_heads
from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean
from probe.analyses.texts.haystacks import Haystack
from probe.errors import UsageError
from probe.figures.style import decimal
from probe.heads import Head
from probe.saving.jsonable import plain
from probe.saving.manifest import Recorder
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.analyses.heads.retrieval import RetrievalHeads
    from probe.figures import Plot
    from probe.models import Model

KINDS = ("induction", "previous_token", "duplicate_token", "copying", "sink")
"""What `catalogue` measures itself; "retrieval" comes from its own analysis."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadCatalogue(Result):
    """Scores of every head by name, best-first order by the first of them.

    scores, low, high: name -> [layers, heads], the score and its 95 % bootstrap interval over samples; bounds are NaN
        for a score computed from the weights (copying), a score is NaN for a head that it could not be read from.
    per_sample: name -> [samples, layers, heads], what the sampled scores are means of.
    correlations: one row per pair of scores: a, b, pearson with low and high, spearman, heads.
    notes: what a reader of the scores must know: which norm gains are folded, which heads could not be read.
    """

    scores: dict[str, Tensor]
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    per_sample: dict[str, Tensor]
    correlations: pd.DataFrame
    notes: tuple[str, ...]
    n_kv_heads: int

    @property
    def findings(self) -> tuple[str, ...]:
        """What the correlation of retrieval and induction says, and where the first position takes the attention."""
        found = []
        pair = self.correlation("retrieval", "induction")
        if pair is not None:
            found.append(
                f"retrieval and induction scores correlate at {decimal(pair['pearson'])} "
                f"[{decimal(pair['low'])}, {decimal(pair['high'])}]: these heads {_reading(pair['pearson'])}"
            )
        if "sink" in self.scores:
            share = decimal(float(self.scores["sink"].mean()))
            found.append(f"{share} of the attention goes to the first position")
        return tuple(found)

    def correlation(self, a: str, b: str) -> dict[str, float] | None:
        """The row of `correlations` of two scores, in either order; None where there is none."""
        table = self.correlations
        rows = table[((table["a"] == a) & (table["b"] == b)) | ((table["a"] == b) & (table["b"] == a))]
        return None if rows.empty else rows.iloc[0].drop(["a", "b"]).to_dict()

    def top(self, kind: str, k: int) -> list[Head]:
        """The k heads with the highest score of this kind, best first."""
        return top_heads(self.scores[kind], k)

    def to_df(self) -> pd.DataFrame:
        """One row per head, best first: layer, head, kv_group, each score, and its _low and _high where it has them."""
        columns: dict[str, Tensor] = {}
        for kind, score in self.scores.items():
            columns[kind] = score
            if kind in self.per_sample:
                columns |= {f"{kind}_low": self.low[kind], f"{kind}_high": self.high[kind]}
        return head_table(columns, n_kv_heads=self.n_kv_heads)

    def to_dict(self) -> dict[str, Any]:
        """JSON: manifest, heads (best first; scores: name -> value, low, high), correlations, findings, notes."""
        table = self.to_df()
        heads = []
        for layer, head, group in zip(table["layer"], table["head"], table["kv_group"], strict=True):
            scores = {
                kind: {
                    name: float(maps[kind][layer, head])
                    for name, maps in (("value", self.scores), ("low", self.low), ("high", self.high))
                }
                for kind in self.scores
            }
            heads.append({"layer": int(layer), "head": int(head), "kv_group": int(group), "scores": scores})
        return {
            "manifest": self.manifest.to_dict(),
            "heads": plain(heads),
            "correlations": plain(self.correlations.to_dict("records")),
            "findings": list(self.findings),
            "notes": list(self.notes),
        }

    def figures(self) -> dict[str, Plot]:
        """maps: every score by layer and head. retrieval_induction: one against the other. correlations: all pairs."""
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


@torch.no_grad()
def catalogue(
    model: Model,
    *,
    kinds: Sequence[str] = KINDS,
    retrieval: RetrievalHeads | None = None,
    seed: int = 0,
    sequences: int = 8,
    length: int = 64,
    haystack: Haystack | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeadCatalogue:
    """The scores of every head of `model` in one table.

    kinds: which of KINDS to measure. retrieval: a finished retrieval run of the same model, for the first column.
    seed: of the random tokens and the intervals. sequences, length: of the repeated random tokens. haystack: the prose
    for the sink scores. progress: called with (analyses done, analyses planned).
    """
    wanted = [kind for kind in KINDS if kind in kinds]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"expected kinds among {', '.join(KINDS)}, got {unknown[0]!r}")
    if not wanted and retrieval is None:
        raise UsageError(f"expected at least one kind among {', '.join(KINDS)}, or a retrieval run, got none")
    patterns = [kind for kind in wanted if kind in pattern_heads.PATTERNS]
    planned = bool(patterns) + ("copying" in wanted) + ("sink" in wanted)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, planned)

    recorder = Recorder(
        model,
        analysis="catalogue",
        options={
            "kinds": wanted,
            "sequences": sequences,
            "length": length,
            "retrieval": None if retrieval is None else retrieval.manifest.fingerprint(),
            "haystack_sha256": None if haystack is None else haystack.sha256,
        },
        seed=seed,
    )
    scores: dict[str, Tensor] = {}
    per_sample: dict[str, Tensor] = {}
    notes: list[str] = []
    prompts: list[str] = []
    bos: bool | None = None
    if retrieval is not None:
        scores["retrieval"], per_sample["retrieval"] = retrieval.score, retrieval.per_sample
        prompts += retrieval.manifest.prompts
    if patterns:
        found = pattern_heads.run(model, sequences=sequences, length=length, seed=seed)
        per_sample |= {kind: found.per_sample(kind) for kind in patterns}
        scores |= {kind: found.score(kind) for kind in patterns}
        prompts += found.manifest.prompts
        bos = found.manifest.bos
        step()
    if "copying" in wanted:
        copied = copying.run(model)
        scores["copying"] = copied.score
        notes += [f"copying: {copied.norms}", *(f"copying, {reason}" for reason in copied.unread)]
        step()
    if "sink" in wanted:
        sinks = sink_scores.run(model, haystack=haystack)
        scores["sink"], per_sample["sink"] = sinks.score, sinks.per_sample
        prompts += sinks.manifest.prompts
        bos = sinks.manifest.bos
        step()
    low, high = {}, {}
    for kind, score in scores.items():
        nothing = torch.full_like(score, torch.nan)
        low[kind], high[kind] = (
            bootstrap_mean(per_sample[kind], seed=seed) if kind in per_sample else (nothing, nothing)
        )
    return HeadCatalogue(
        manifest=recorder.manifest(prompts=prompts, bos=bos),
        scores=scores,
        low=low,
        high=high,
        per_sample=per_sample,
        correlations=correlation_table(scores),
        notes=tuple(notes),
        n_kv_heads=model.n_kv_heads,
    )


def correlation_table(scores: dict[str, Tensor]) -> pd.DataFrame:
    """One row per pair of maps [layers, heads]: a, b, pearson, low, high, spearman, heads."""
    columns = ["a", "b", "pearson", "low", "high", "spearman", "heads"]
    rows = []
    for a, b in combinations(scores, 2):
        found = correlate(scores[a], scores[b])
        rows.append([a, b, found.pearson, found.low, found.high, found.spearman, found.heads])
    return pd.DataFrame(rows, columns=columns)


def _reading(pearson: float) -> str:
    """What a correlation of the retrieval with the induction map says, in words."""
    if pearson >= 0.8:
        return "are mostly induction heads"
    if pearson >= 0.5:
        return "are partly induction heads"
    return "are not simply induction heads"
