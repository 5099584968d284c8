"""Runs in which some edges carry what the corrupted prompt writes: exact, whatever the set of edges.

Layer by layer, each receiver reads a stream of its own,

    corrupted stream + sum over senders of weight x (what the sender writes now - what it writes when corrupted),

with weight 1 for an edge that is kept and 0 for one that is cut. "Now" is this run: what an upstream cut changed is
passed on. With every edge kept this is the clean run, with none the corrupted one. (What heads write before a norm is
added up inside each receiver's copy of that norm; see `head_writes`.) Receivers of a layer that read the same stream
share one run of the layer, so a sparse circuit costs little more than the model, and a dense random one up to heads +
2 KV heads runs of each layer's norm and projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from probe.edges.graph import Edge, EdgeCircuit, Receiver, Sender
from probe.edges.sides import Side, batch_size, side
from probe.edges.steps import LayerRun, forward, taken_apart
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.interventions.call import AttentionCall
from probe.patching.effects import Effects, joined
from probe.patching.pairs import Pairs

Progress = Callable[[int, int], None]


class Patched:
    """A batch of pairs, ready for runs with some of their edges cut."""

    def __init__(self, wiring: Wiring, pairs: Pairs) -> None:
        self.wiring, self.pairs = wiring, pairs
        self.corrupted: Side = side(wiring, pairs.corrupted, pairs.padding)
        self._plain = {  # of the layers with a norm behind attention: what their heads write together, before it
            layer: maps.sum(z)
            for layer, (maps, z) in enumerate(zip(wiring.writes, self.corrupted.z, strict=True))
            if maps.norm is not None
        }

    @torch.no_grad()
    def logits(self, weights: Tensor) -> Tensor:
        """Logits at END, [prompts, vocab], with each edge at its weight: [receivers, senders], bool or within 0..1."""
        return self.run(weights)[0]

    @torch.no_grad()
    def run(self, weights: Tensor, *, start: int = 0, changes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits at END, and each sender's write less its corrupted one, [senders, prompts x tokens x hidden].

        start: the first layer to run. `changes`, of a run with the same weights before that layer, is written over from
        there on.
        """
        graph, model = self.wiring.graph, self.wiring.model
        if weights.shape != graph.exists.shape:
            raise UsageError(f"weights must be {list(graph.exists.shape)}, got {list(weights.shape)}")
        if changes is None and start:
            raise UsageError(f"a run that starts at layer {start} needs the changes of the layers before")
        stream = self.corrupted.entering[0]
        weights = (weights * graph.exists).to(stream)
        found = stream.new_empty(len(graph.senders), stream.numel()) if changes is None else changes

        def step(run: LayerRun, entered: Tensor) -> Tensor:
            if run.layer == 0:
                found[0] = (entered - self.corrupted.entering[0]).flatten()
            if run.layer >= start:
                self._layer(run, weights, found)
            if run.layer < graph.layers - 1:
                return entered
            return self.corrupted.entering[-1] + self._moved(weights[-1:], found)[0]

        with taken_apart(model, step):
            return forward(model, self.pairs.clean, self.pairs.padding), found

    def _layer(self, run: LayerRun, weights: Tensor, found: Tensor) -> None:
        """Run one layer and put what its heads and MLP write now, less what they write when corrupted, into `found`."""
        graph, layer, corrupted = self.wiring.graph, run.layer, self.corrupted
        base, maps = corrupted.entering[layer], self.wiring.writes[layer]
        before, heads = graph.entering(layer), graph.written(layer)
        for_attention, for_mlp = weights[graph.attention(layer), :before], weights[graph.mlp(layer)]
        if not (for_attention.any() or for_mlp.any()):
            found[heads.start : heads.stop + 1] = 0
            return
        alike, which = for_attention.unique(dim=0, return_inverse=True)
        *streams, stream = base + self._moved(torch.cat([alike, for_mlp[None, :before]]), found)
        call = _assembled([run.read(each) for each in streams], which.tolist(), graph.heads, graph.kv_heads)

        def attended(z: Tensor, written: Tensor) -> Tensor:
            found[heads] = maps.of(z - corrupted.z[layer]).transpose(0, 1).flatten(1)
            return corrupted.attention[layer] + self._moved_by(layer, for_mlp[None, heads], found)[0]

        mlp = run.run(stream, operands=lambda _: call, attended=attended)
        found[heads.stop] = (mlp - corrupted.mlp[layer]).flatten()

    def _moved(self, weights: Tensor, found: Tensor) -> Tensor:
        """How far streams are from corrupted ones, [streams, prompts, tokens, hidden]; weights [streams, senders]."""
        graph, linear, bent = self.wiring.graph, weights, []
        for layer in self._plain:
            if graph.entering(layer) < weights.shape[1]:
                heads = graph.written(layer)
                bent.append(self._moved_by(layer, weights[:, heads], found))
                linear = linear.clone()
                linear[:, heads] = 0
        moved = _mixed(linear, found).view(-1, *self.corrupted.entering[0].shape)
        return sum(bent, moved)

    def _moved_by(self, layer: int, weights: Tensor, found: Tensor) -> Tensor:
        """What a layer's heads add to streams, less what they do when corrupted; weights [streams, heads]."""
        maps = self.wiring.writes[layer]
        change = _mixed(weights, found[self.wiring.graph.written(layer)]).view(-1, *self.corrupted.mlp[layer].shape)
        if layer not in self._plain:
            return change
        plain = self._plain[layer]
        return maps.behind(plain + change) - maps.behind(plain)


def _mixed(weights: Tensor, found: Tensor) -> Tensor:
    """Weighted sums of what senders changed: [streams, senders] x [senders, prompts x tokens x hidden]."""
    used = weights.any(0).nonzero()[:, 0]
    if 2 * len(used) < weights.shape[1]:  # a sparse circuit
        return weights[:, used] @ found[used]
    return weights @ found[: weights.shape[1]]


def _assembled(calls: Sequence[AttentionCall], which: Sequence[int], heads: int, kv_heads: int) -> AttentionCall:
    """One call whose receivers, in the graph's order, have their operands from the calls `which` names."""
    if len(calls) == 1:
        return calls[0]
    parts = {"query": which[:heads], "key": which[heads : heads + kv_heads], "value": which[heads + kv_heads :]}
    return replace(
        calls[0],
        **{
            name: torch.stack([getattr(calls[of], name)[:, head] for head, of in enumerate(chosen)], 1)
            for name, chosen in parts.items()
        },
    )


def edge_effects(
    wiring: Wiring,
    pairs: Pairs,
    edges: Sequence[Edge | tuple[Sender, Receiver]],
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Effects:
    """The exact effect of each edge: the logit difference where it alone carries the corrupted write, in logits.

    Costs a run from the receiver's layer on for each edge. batch and progress as in `logit_differences`.
    """
    graph = wiring.graph
    named = tuple(Edge(*edge) for edge in edges)
    places = [graph.place(edge) for edge in named]
    order = sorted(range(len(places)), key=lambda index: -places[index][0])  # later layers first: changes stay good
    parts = []
    batches = list(pairs.batches(batch or batch_size(wiring, pairs.clean.shape[1], copies=2)))
    for done, (rows, part) in enumerate(batches):
        patched = Patched(wiring, part)
        logits, changes = patched.run(graph.exists)
        clean = part.logit_difference(logits).float().cpu()
        corrupted = part.logit_difference(patched.corrupted.logits).float().cpu()
        found = torch.empty(len(named), len(part))
        for count, index in enumerate(order):
            weights = graph.exists.clone()
            weights[places[index]] = False
            logits, _ = patched.run(weights, start=graph.layer_of(places[index][0]), changes=changes)
            found[index] = part.logit_difference(logits).float().cpu()
            if progress is not None:
                progress(done * len(named) + count + 1, len(batches) * len(named))
        parts.append((rows, Effects(named, found, clean, corrupted)))
    return joined(parts, prompts=len(pairs))


def logit_differences(
    wiring: Wiring,
    pairs: Pairs,
    circuits: Sequence[EdgeCircuit | Tensor],
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The logit difference with each circuit's edges kept and all others corrupted, [circuits, prompts], in logits.

    circuits: or weights [receivers, senders] of edges within 0..1. batch: prompts that run at once, as many as memory
    is set aside for where None. progress: called with (runs done, runs planned).
    """
    found = torch.empty(len(circuits), len(pairs))
    size = batch or batch_size(wiring, pairs.clean.shape[1], copies=2)
    batches = list(pairs.batches(size))
    for done, (rows, part) in enumerate(batches):
        patched = Patched(wiring, part)
        for index, circuit in enumerate(circuits):
            weights = circuit.kept if isinstance(circuit, EdgeCircuit) else circuit
            found[index, rows] = part.logit_difference(patched.logits(weights)).float().cpu()
            if progress is not None:
                progress(done * len(circuits) + index + 1, len(batches) * len(circuits))
    return found
