"""The result of scored edges: scores, exact effects of the best, and curves of circuits of growing size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.edges.claims import AGREEMENT, CMD, CPR, cmd, correlation, cpr
from probe.analyses.circuits.edges.settings import RANKINGS
from probe.analyses.circuits.quotient import divides, of_draws
from probe.edges.curves import CircuitCurve
from probe.edges.graph import Graph
from probe.edges.scores import EdgeScores, Ranking
from probe.frame.findings import Finding
from probe.frame.scores import HeadScore
from probe.frame.tables import Table, columns, decimal, written
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

EDGES_MEANING = (
    "score: what the logit difference LD is expected to change if the edge carries what its sender writes in the "
    "corrupted prompt, in percent of the gap (mean corrupted LD less mean clean LD); positive supports the answer; n/a "
    "if the gap is within its error. logits: the same, not divided, with its standard error over prompts. L3Q1, L3K0, "
    "L3V0: queries of a head, keys and values of a KV head; L3H1: what a head writes."
)
EXACT_MEANING = (
    "score: the estimate. exact: the change of LD when the edge alone carries what its sender writes in the corrupted "
    "prompt, with its standard error over prompts. Both are in percent of the gap."
)
CURVE_MEANING = (
    "edges: how many of the best edges are kept; connected: how many of those lie on a path to the logits. f: "
    "faithfulness, (LD of the circuit - LD with nothing kept) / (LD of the whole model - LD with nothing kept), on "
    "prompts that the scores have not seen. random f: mean of random circuits with the same number of edges [lowest, "
    "highest]."
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Edges(Result):
    """The edges of a task's circuit.

    task, method: what was asked, and where scores come from. graph: layers, heads, kv_heads and parallel, which make a
    `probe.edges.graph.Graph`. raw, standard_error [receivers, senders]: the scores, in logits. scored_clean,
    scored_corrupted: LD of the prompts that gave them. clean, corrupted: LD of the prompts of the curve. percents,
    sizes: the circuits. difference [rankings, sizes, prompts], random [draws, sizes, prompts]: LD of circuits. exact:
    one row for each of the best edges: sender, receiver, percent, exact, exact_error (of the gap).
    """

    task: str
    method: str
    graph: dict[str, Any]
    raw: Tensor
    standard_error: Tensor
    scored_clean: Tensor
    scored_corrupted: Tensor
    clean: Tensor
    corrupted: Tensor
    percents: tuple[float, ...]
    sizes: tuple[int, ...]
    difference: Tensor
    random: Tensor
    exact: pd.DataFrame

    @cached_property
    def scores(self) -> EdgeScores:
        """Return the scores, which give circuits of any size: `found.scores.circuit(700)`."""
        counts = {name: self.graph[name] for name in ("layers", "heads", "kv_heads")}
        graph = Graph(**counts, parallel=tuple(self.graph["parallel"]))
        return EdgeScores(graph, self.raw, self.standard_error, self.scored_clean, self.scored_corrupted, self.method)

    def curve(self, by: Ranking = "magnitude") -> CircuitCurve:
        """Return faithfulness by size, edges ranked by magnitude (as for CMD) or by support (as for CPR)."""
        return CircuitCurve(
            percents=self.percents,
            sizes=self.sizes,
            connected=tuple(len(self.scores.circuit(size, by=by).pruned()) for size in self.sizes),
            difference=self.difference[RANKINGS.index(by)],
            random=self.random,
            clean=self.clean,
            corrupted=self.corrupted,
            method=self.method,
            by=by,
        )

    @property
    def agreement(self) -> float:
        """Return Pearson correlation of the best edges' scores with their exact effects; NaN for fewer than three."""
        if len(self.exact) < 3:
            return float("nan")
        return float(torch.corrcoef(torch.tensor(self.exact[["percent", "exact"]].to_numpy().T))[0, 1])

    @property
    def divides(self) -> bool:
        """Return whether the gap of the scored prompts is larger than its error, so that percentages of it mean
        something.
        """
        return divides(self.scored_corrupted - self.scored_clean)

    @property
    def has_faithfulness(self) -> bool:
        """Return whether the gap of the curve's prompts is larger than its error, so that it can divide."""
        return divides(self.clean - self.corrupted)

    def summary(self) -> tuple[str, ...]:
        lines = [f"{self.scores.graph.describe()}; scores by {self.method}."]
        if not self.has_faithfulness:
            lines.append("The gap of the curve's prompts is within its error, so that circuits have no faithfulness.")
        for by, area in zip(RANKINGS, self.findings(), strict=False) if self.has_faithfulness else ():
            beside = f", and random circuits have {area.control_value:.3f}" if len(self.random) else ""
            reached = self.curve(by).smallest()
            kept = "no circuit smaller than the model keeps" if reached is None else f"{reached:g} % of the edges keep"
            lines.append(
                f"Ranked by {by}, {kept} nine tenths of the logit difference; {area.name.upper()} is "
                f"{area.value:.3f}{beside}."
            )
        if (count := len(self.exact)) >= 3:
            lines.append(f"Scores and exact effects of the best {count} edges correlate at {self.agreement:.2f}.")
        return tuple(lines)

    def findings(self) -> tuple[Finding, ...]:
        about = {"seed": self.manifest.seed, "command": self.manifest.command}
        ends = (self.clean, self.corrupted, self.percents)
        found = []
        for claim, measure, difference in ((CMD, cmd, self.difference[0]), (CPR, cpr, self.difference[1])):
            control = of_draws([measure(draw, *ends) for draw in self.random])
            found.append(claim.finding(measure(difference, *ends), control, **about))
        found.append(AGREEMENT.finding(correlation(self.agreement, len(self.exact)), **about))
        return tuple(found)

    def to_df(self) -> pd.DataFrame:
        """Return the best hundred edges by score."""
        return self.scores.to_df(top=min(100, self.scores.graph.edges))

    def tables(self) -> dict[str, Table]:
        rows, exact, nan = self.to_df(), self.exact, float("nan")
        if not self.divides:
            rows, exact = rows.assign(percent=nan), exact.assign(percent=nan, exact=nan, exact_error=nan)
        score = columns(sender="sender", receiver="receiver", percent=("score, %", written("+.1f")))
        logits = columns(raw=("logits", written("+.3f")), standard_error=("±", written(".3f")))
        found = {
            "edges": Table(
                rows=rows, columns=score + logits, meaning=EDGES_MEANING, title="best edges by score", top=10
            )
        }
        count = written(",")
        sizes = columns(
            percent=("% of edges", written("g")), edges=("edges", count), connected=("connected", count),
            faithfulness=("f", decimal),
        )  # fmt: skip
        if len(self.random):
            sizes += columns(random=("random f", decimal, "random_least", "random_most"))
        for by in RANKINGS:
            curve = self.curve(by).to_df()
            if not self.has_faithfulness:
                curve = curve.assign(**dict.fromkeys(curve.columns[3:], nan))
            found[by] = Table(
                rows=curve, columns=sizes, meaning=CURVE_MEANING, title=f"circuits of edges ranked by {by}"
            )
        if len(exact):
            effects = columns(exact=("exact, %", written("+.1f")), exact_error=("±", written(".1f")))
            title = "the best edges, patched one at a time"
            found["exact"] = Table(rows=exact, columns=score + effects, meaning=EXACT_MEANING, title=title, top=10)
        return found

    def head_scores(self) -> dict[str, HeadScore]:
        if not self.divides:
            return {}
        graph, out = self.scores.graph, self.scores.normalised.sum(0)
        values = torch.stack([out[graph.written(layer)] for layer in range(graph.layers)])
        sign = "sum of the scores of the edges that leave the head; positive: what it writes supports the answer"
        return {"edges out of heads": HeadScore(values=values, unit="percent of the gap", sign=sign)}

    def figures(self) -> dict[str, Plot]:
        """Return faithfulness by size for each ranking, and the best edges' scores beside their exact effects."""
        from probe.analyses.circuits.edges.figures import curve_figure, exact_figure

        name = f"{self.task}, {self.manifest.name}"
        drawn = {by: curve_figure(self.curve(by), name=name) for by in RANKINGS}
        return drawn | ({"exact": exact_figure(self, name=name)} if len(self.exact) else {})
