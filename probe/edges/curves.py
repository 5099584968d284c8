"""How much of a model's answer circuits of growing size keep: MIB's faithfulness curve, its areas, and a control.

Mueller et al. 2025, circuit localization: with m the mean logit difference, M the whole model and everything outside a
circuit corrupted,

    f(k) = (m(C_k) - m(nothing)) / (m(M) - m(nothing)),    C_k the best k % of the edges,
    CPR = integral of f,    CMD = integral of |1 - f|,

by trapezoids over k as a share of all edges, as in their code from the smallest k (0.1 %) to 1. CPR is the better the
higher and can exceed 1, for a circuit may leave out what speaks against the answer; CMD is the better the lower. Both
weigh large circuits most, for k is linear, and half of either is decided between 50 and 100 % of the edges: look at the
curve. The control is circuits of as many edges drawn at random, few of which lie on any path at small sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

if TYPE_CHECKING:
    import pandas as pd

PERCENTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CircuitCurve:
    """Logit differences of circuits by size. sizes: how many edges; connected: how many of them lie on a path.

    difference [sizes, prompts]; random [draws, sizes, prompts]; clean, corrupted [prompts]; all in logits. method, by:
    which scores ranked the edges, and how.
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
        """f(k), [sizes]: 0 is the corrupted prompts, 1 the whole model. A quotient of means over prompts."""
        return self._faithfulness(self.difference)

    @property
    def random_faithfulness(self) -> Tensor:
        """f(k) of the random circuits, [draws, sizes]."""
        return self._faithfulness(self.random)

    @property
    def cpr(self) -> float:
        """Area under f, a share."""
        return float(area(self.faithfulness, self.percents))

    @property
    def cmd(self) -> float:
        """Area between f and 1, a share."""
        return float(area((1 - self.faithfulness).abs(), self.percents))

    @property
    def random_cpr(self) -> Tensor:
        """Area under f of each random draw, [draws]."""
        return area(self.random_faithfulness, self.percents)

    @property
    def random_cmd(self) -> Tensor:
        """Area between f and 1 of each random draw, [draws]."""
        return area((1 - self.random_faithfulness).abs(), self.percents)

    def smallest(self, share: float = 0.9) -> float | None:
        """The least percent of the edges that keeps `share` of the answer; None where only the whole model does."""
        kept = zip(self.percents, self.faithfulness.tolist(), strict=True)
        return next((percent for percent, found in kept if found >= share and percent < 100), None)

    def to_df(self) -> pd.DataFrame:
        """One row for each size: percent, edges, connected, faithfulness, and random circuits' (mean, least, most)."""
        import pandas as pd

        drawn = self.random_faithfulness
        control = {}
        if len(drawn):
            control = {"random": drawn.mean(0), "random_least": drawn.amin(0), "random_most": drawn.amax(0)}
        return pd.DataFrame(
            {
                "percent": self.percents,
                "edges": self.sizes,
                "connected": self.connected,
                "faithfulness": self.faithfulness,
                **control,
            }
        )

    def _faithfulness(self, difference: Tensor) -> Tensor:
        corrupted = self.corrupted.double().mean()
        return (difference.double().mean(-1) - corrupted) / (self.clean.double().mean() - corrupted)


def area(values: Tensor, percents: Sequence[float]) -> Tensor:
    """Area under values [..., sizes] by trapezoids over percents / 100."""
    return torch.trapezoid(values.double(), torch.tensor(percents, dtype=torch.float64) / 100)


def sizes_of(graph: Graph, percents: Sequence[float]) -> list[int]:
    """How many edges so many percent are. Raises UsageError for percents that do not rise within 0..100."""
    if not percents or list(percents) != sorted(set(percents)) or not 0 < percents[0] <= percents[-1] <= 100:
        raise UsageError(f"percents must rise within 0..100, got {list(percents)}")
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
    """The curve of the best edges by `scores`, and of `draws` sets of random circuits of the same sizes.

    pairs: best others than those the scores come from. by: rank edges by "magnitude", as for CMD, or by how much they
    "support" the answer, as for CPR. progress: called with (runs done, runs planned). Raises UsageError for percents
    that do not rise within 0..100.
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
    """Logit differences [circuits, prompts]; circuits with the same edges run once."""
    keys = [circuit.kept.numpy().tobytes() for circuit in circuits]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    distinct = sorted(first.values())
    found = logit_differences(wiring, pairs, [circuits[index] for index in distinct], batch=batch, progress=progress)
    return found[[distinct.index(first[key]) for key in keys]]
