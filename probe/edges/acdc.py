"""Which edges does an answer need? ACDC cuts edges one by one and keeps a cut if the answer hardly changes.

The method is algorithm 1 of Conmy et al. 2023. Receivers are visited in reverse order, from the logits to the first
layer, and the senders of a receiver from the latest to the earliest. A cut is kept if it raises the divergence from the
whole model by less than tau. The divergence is one of

    kl           mean over prompts of KL(whole model || circuit) over the next token, in nats
    difference   mean fall of the logit difference, in logits

If no kept edge leaves a head or an MLP, its receivers are cut off without a run, because they cannot change the answer.
A run begins at the layer of its receiver, because earlier layers are decided by edges that come later in the search.

The search costs one run for each edge, which is too slow for all but small models. Three options make it smaller:
`unit` "block" cuts all edges between two blocks at once (the embedding, a layer's attention, a layer's MLP, the
logits); `layers` visits only the receivers of some layers; `within` begins from a circuit, such as the best edges by
EAP-IG. `acdc_cost` returns the largest possible number of runs beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from probe.edges.graph import EdgeCircuit, Graph
from probe.edges.patched import Patched
from probe.edges.sides import batches
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.patching.pairs import Pairs
from probe.patching.runs import Progress

Metric = Literal["kl", "difference"]
Unit = Literal["edge", "block"]


@dataclass(frozen=True)
class AcdcCost:
    """The largest cost of a search: `runs`, and `forwards`, the number of whole forward passes with the same work."""

    runs: int
    forwards: float


@dataclass(frozen=True, eq=False)
class Acdc:
    """The circuit that a search kept. divergence: from the whole model, in the metric's unit. runs: their number."""

    circuit: EdgeCircuit
    divergence: float
    runs: int
    tau: float
    metric: Metric
    unit: Unit


def acdc_cost(
    graph: Graph, *, unit: Unit = "edge", layers: Sequence[int] | None = None, within: EdgeCircuit | None = None
) -> AcdcCost:
    """Return what `acdc` with these options costs for each batch of prompts if every receiver needs its runs."""
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
    """Return the circuit that is left when every edge whose cut raises the divergence by less than `tau` is cut.

    metric, unit, within: see the module docstring. layers: the layers whose receivers are visited; the number of layers
    stands for the logits, and None visits all. batch: number of prompts that run at once; None takes what fits in 1 GB
    of float32. progress: called with (groups of edges visited, groups planned). Raises UsageError for an unknown
    metric, unit or layer.
    """
    if metric not in ("kl", "difference"):
        raise UsageError(f"metric must be 'kl' or 'difference', got {metric!r}")
    graph = wiring.graph
    kept = (EdgeCircuit.whole(graph) if within is None else within).kept.clone()
    search = _Search(wiring, pairs, kept, metric, batch)
    current = search.divergence(kept, start=0)
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
    """All prompts, ready for runs of circuits that begin at a layer; the search starts from `kept`."""

    def __init__(self, wiring: Wiring, pairs: Pairs, kept: Tensor, metric: Metric, batch: int | None) -> None:
        self.metric, self.prompts, self.runs = metric, len(pairs), 0
        self.parts = [Patched(wiring, part) for _, part in batches(wiring, pairs, batch)]
        self.whole = [part.logits(wiring.graph.exists) for part in self.parts]
        self.changes = [part.run(kept)[1] for part in self.parts]

    def divergence(self, kept: Tensor, *, start: int) -> float:
        """Return the divergence of the circuit `kept` from the whole model, by runs that begin at layer `start`."""
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
    """Return the receivers and senders whose edges are cut together, in the order in which they are visited."""
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
