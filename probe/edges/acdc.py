"""ACDC: edges are cut one by one, from the logits backwards, for as long as the model's answer does not mind.

Conmy et al. 2023, algorithm 1. Receivers are visited in reverse order, and at each its senders, the latest first. An
edge stays cut if that raises the divergence from the whole model by less than tau:

    kl           mean over prompts of KL(whole model || circuit) over the next token
    difference   mean fall of the logit difference, in logits

A receiver that nobody hears any more is dropped without a run, which cannot change anything. Runs begin at the layer of
the receiver: what is written before it is decided by edges that were not visited yet.

One run for each of a model's edges is out of reach for all but small models, so say less: `unit` "block" cuts all edges
between two blocks at once (the embedding, a layer's attention, a layer's MLP, the logits), `layers` visits the
receivers of these layers alone, and `within` begins from a circuit, such as the best edges by EAP-IG. `acdc_cost` says
beforehand how many runs there can be at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from probe.edges.graph import EdgeCircuit, Graph
from probe.edges.patched import Patched
from probe.edges.sides import batch_size
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.patching.pairs import Pairs

Metric = Literal["kl", "difference"]
Unit = Literal["edge", "block"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AcdcCost:
    """The most that a search can cost: `runs`, which are as much work as so many whole `forwards` with edges cut."""

    runs: int
    forwards: float


@dataclass(frozen=True, eq=False)
class Acdc:
    """What a search found. divergence: from the whole model, in the metric's units. runs: how many it took."""

    circuit: EdgeCircuit
    divergence: float
    runs: int
    tau: float
    metric: Metric
    unit: Unit


def acdc_cost(
    graph: Graph, *, unit: Unit = "edge", layers: Sequence[int] | None = None, within: EdgeCircuit | None = None
) -> AcdcCost:
    """What `acdc` with these options costs for each batch of prompts, if no receiver falls silent."""
    kept = graph.exists if within is None else within.kept
    starts = [graph.layer_of(rows.start) for rows, columns in _groups(graph, unit, layers) if kept[rows, columns].any()]
    return AcdcCost(len(starts), sum(graph.layers - start for start in starts) / graph.layers)


def acdc(
    wiring: Wiring,
    pairs: Pairs,
    *,
    tau: float,
    metric: Metric = "kl",
    unit: Unit = "edge",
    layers: Sequence[int] | None = None,
    within: EdgeCircuit | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Acdc:
    """The circuit that is left when every edge whose cut raises the divergence by less than `tau` is cut.

    layers: whose receivers are visited; the number of layers stands for the logits. None visits all. progress: called
    with (groups of edges visited, groups there are). Raises UsageError for an unknown metric, unit or layer.
    """
    if metric not in ("kl", "difference"):
        raise UsageError(f"metric must be 'kl' or 'difference', got {metric!r}")
    graph = wiring.graph
    kept = (EdgeCircuit.whole(graph) if within is None else within).kept.clone()
    search = _Search(wiring, pairs, metric, batch)
    current = search.begin(kept)
    groups = _groups(graph, unit, layers)
    for index, (rows, columns) in enumerate(groups):
        trial = kept.clone()
        trial[rows, columns] = False
        if not torch.equal(trial, kept):
            heard = bool((graph.decides[rows] & kept.any(0)).any()) or rows.stop == len(graph.receivers)
            found = search.divergence(trial, start=graph.layer_of(rows.start)) if heard else current
            if found - current < tau:
                kept, current = trial, found
        if progress is not None:
            progress(index + 1, len(groups))
    return Acdc(EdgeCircuit(graph, kept), current, search.runs, tau, metric, unit)


class _Search:
    """All prompts, ready for runs that begin at a layer; divergences are means over prompts."""

    def __init__(self, wiring: Wiring, pairs: Pairs, metric: Metric, batch: int | None) -> None:
        self.metric, self.prompts, self.runs = metric, len(pairs), 0
        size = batch or batch_size(wiring, pairs.clean.shape[1], copies=2)
        self.parts = [Patched(wiring, part) for _, part in pairs.batches(size)]
        self.exists = wiring.graph.exists
        self.whole: list[Tensor] = []
        self.changes: list[Tensor] = []

    def begin(self, kept: Tensor) -> float:
        """The divergence of the circuit that the search starts from."""
        for part in self.parts:
            self.whole.append(part.logits(self.exists))
            self.changes.append(part.run(kept)[1])
        return self.divergence(kept, start=0)

    def divergence(self, kept: Tensor, *, start: int) -> float:
        self.runs += 1
        total = 0.0
        for part, whole, changes in zip(self.parts, self.whole, self.changes, strict=True):
            logits, _ = part.run(kept, start=start, changes=changes)
            if self.metric == "kl":
                wanted, found = whole.double().log_softmax(-1), logits.double().log_softmax(-1)
                total += float((wanted.exp() * (wanted - found)).sum())
            else:
                fall = part.pairs.logit_difference(whole) - part.pairs.logit_difference(logits)
                total += float(fall.double().sum())
        return total / self.prompts


def _groups(graph: Graph, unit: Unit, layers: Sequence[int] | None) -> list[tuple[slice, slice]]:
    """Receivers and senders whose edges are cut together, in the order in which they are visited."""
    if unit not in ("edge", "block"):
        raise UsageError(f"unit must be 'edge' or 'block', got {unit!r}")
    if layers is not None and (wrong := [layer for layer in layers if not 0 <= layer <= graph.layers]):
        raise UsageError(f"layers must be within 0..{graph.layers} ({graph.layers} is the logits), got {wrong[0]}")
    if unit == "edge":
        receivers = [slice(row, row + 1) for row in range(len(graph.receivers))]
        senders = [slice(column, column + 1) for column in range(len(graph.senders))]
    else:
        receivers, senders = [], [slice(0, 1)]
        for layer in range(graph.layers):
            mlp, written = graph.mlp(layer), graph.written(layer)
            receivers += [graph.attention(layer), slice(mlp, mlp + 1)]
            senders += [written, slice(written.stop, written.stop + 1)]
        receivers.append(slice(len(graph.receivers) - 1, len(graph.receivers)))
    chosen = [rows for rows in receivers if layers is None or graph.layer_of(rows.start) in layers]
    return [
        (rows, columns)
        for rows in reversed(chosen)
        for columns in reversed(senders)
        if bool(graph.exists[rows, columns].any())
    ]
