"""How much of a model's answer does a circuit keep as it grows? MIB's faithfulness curve says it.

In MIB's circuit localization (Mueller et al. 2025), every edge outside a circuit carries the corrupted write. With m
the mean logit difference, M the whole model and C_k the best k percent of the edges,

    f(k) = (m(C_k) - m(nothing)) / (m(M) - m(nothing)),
    CPR = integral of f,    CMD = integral of |1 - f|,

by trapezoids over k as a share of all edges, from the smallest k (0.1%) to 1 as in their code. A higher CPR is better,
and it can exceed 1, because a circuit may leave out edges that speak against the answer. A lower CMD is better. k is
linear, so half of either area lies between 50% and 100% of the edges: read the curve as well.

The control is circuits with the same number of edges drawn at random. At small sizes few of these edges lie on a path
from the embedding to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.edges.graph import EdgeCircuit, Graph
from probe.edges.patched import logit_differences
from probe.edges.scores import EdgeScores, Ranking
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.patching.pairs import Pairs
from probe.patching.runs import Progress

if TYPE_CHECKING:
    import pandas as pd

PERCENTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True, eq=False)
class CircuitCurve:
    """The logit differences of circuits by size. sizes: numbers of edges; connected: numbers of edges on a path.

    difference [sizes, prompts]; random [draws, sizes, prompts]; clean, corrupted [prompts]; all in logits. method, by:
    the scores that ranked the edges, and the ranking.
    """

    percents: tuple[float, ...]
    sizes: tuple[int, ...]
    connected: tuple[int, ...]
    difference: Tensor
    random: Tensor
    clean: Tensor
    corrupted: Tensor
    method: str
    by: Ranking

    @property
    def faithfulness(self) -> Tensor:
        """Return f(k), [sizes], a quotient of means over prompts: 0 is the corrupted prompts, 1 the whole model."""
        return self._faithfulness(self.difference)

    @property
    def random_faithfulness(self) -> Tensor:
        """Return f(k) of the random circuits, [draws, sizes]."""
        return self._faithfulness(self.random)

    @property
    def cpr(self) -> float:
        """Return CPR, the area under f, a share."""
        return float(area(self.faithfulness, self.percents))

    @property
    def cmd(self) -> float:
        """Return CMD, the area between f and 1, a share."""
        return float(area((1 - self.faithfulness).abs(), self.percents))

    def smallest(self, share: float = 0.9) -> float | None:
        """Return the smallest percentage of edges that keeps `share` of the answer, or None if all are needed."""
        kept = zip(self.percents, self.faithfulness.tolist(), strict=True)
        return next((percent for percent, found in kept if found >= share and percent < 100), None)

    def to_df(self) -> pd.DataFrame:
        """Return one row for each size: percent, edges, connected, faithfulness, and random circuits' mean, range."""
        import pandas as pd

        drawn = self.random_faithfulness
        control = {}
        if len(drawn):
            control = {"random": drawn.mean(0), "random_least": drawn.amin(0), "random_most": drawn.amax(0)}
        sizes = {"percent": self.percents, "edges": self.sizes, "connected": self.connected}
        return pd.DataFrame({**sizes, "faithfulness": self.faithfulness, **control})

    def _faithfulness(self, difference: Tensor) -> Tensor:
        corrupted = self.corrupted.double().mean()
        return (difference.double().mean(-1) - corrupted) / (self.clean.double().mean() - corrupted)


def area(values: Tensor, percents: Sequence[float]) -> Tensor:
    """Return the area under values [..., sizes] by trapezoids over percents / 100."""
    return torch.trapezoid(values.double(), torch.tensor(percents, dtype=torch.float64) / 100)


def sizes_of(graph: Graph, percents: Sequence[float]) -> list[int]:
    """Return the numbers of edges at given percentages. Raises UsageError unless these rise within 0..100."""
    if not percents or list(percents) != sorted(set(percents)) or not 0 < percents[0] <= percents[-1] <= 100:
        raise UsageError(f"percents must rise within 0..100 and begin above 0, got {list(percents)}")
    return [int(percent * graph.edges / 100) for percent in percents]


def circuit_curve(
    wiring: Wiring,
    pairs: Pairs,
    scores: EdgeScores,
    *,
    by: Ranking = "magnitude",
    percents: Sequence[float] = PERCENTS,
    draws: int = 3,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> CircuitCurve:
    """Return the curve of the best edges by `scores`, and of `draws` sets of random circuits of the same sizes.

    pairs: prompts to measure on; they should differ from the prompts behind the scores. by: rank edges by "magnitude",
    as for CMD, or by their "support" of the answer, as for CPR. seed: of the random circuits. batch, progress: as in
    `probe.edges.patched.logit_differences`. Raises UsageError for percents that do not rise within 0..100.
    """
    graph = scores.graph
    sizes = sizes_of(graph, percents)
    best = [scores.circuit(size, by=by).pruned() for size in sizes]
    drawn = [EdgeCircuit.random(graph, size, seed=seed + draw).pruned() for draw in range(draws) for size in sizes]
    ends = [EdgeCircuit.whole(graph), EdgeCircuit.empty(graph)]
    found = _differences(wiring, pairs, [*ends, *best, *drawn], batch, progress)
    return CircuitCurve(
        percents=tuple(percents),
        sizes=tuple(sizes),
        connected=tuple(len(circuit) for circuit in best),
        difference=found[2 : 2 + len(sizes)],
        random=found[2 + len(sizes) :].view(draws, len(sizes), len(pairs)),
        clean=found[0],
        corrupted=found[1],
        method=scores.method,
        by=by,
    )


def _differences(
    wiring: Wiring, pairs: Pairs, circuits: list[EdgeCircuit], batch: int | None, progress: Progress | None
) -> Tensor:
    """Return logit differences [circuits, prompts]; circuits with the same edges run once."""
    keys = [circuit.kept.numpy().tobytes() for circuit in circuits]
    distinct = dict(zip(keys, circuits, strict=True))
    found = logit_differences(wiring, pairs, list(distinct.values()), batch=batch, progress=progress)
    places = {key: place for place, key in enumerate(distinct)}
    return found[[places[key] for key in keys]]
