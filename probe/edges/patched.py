"""How does a model answer if some of its edges are cut? Exactly: every receiver reads a separate stream.

A cut edge carries what its sender writes in the corrupted prompt. Layer by layer, each receiver reads

    corrupted stream + sum over senders of weight x (write in this run - write in the corrupted run),

with weight 1 for an edge that is kept and 0 for one that is cut. The write in this run includes the effects of cuts
before it. With every edge kept this is the clean run, and with none the corrupted run. Where a norm follows attention,
the writes of heads are summed inside each receiver's copy of that norm (`head_writes`).

Receivers of a layer that read the same stream share one run of the layer. A sparse circuit therefore costs little more
than the model. A dense random circuit costs up to heads + 2 KV heads runs of each layer's norm and projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from probe.edges.graph import Edge, EdgeCircuit, Receiver, Sender
from probe.edges.sides import Side, batches, side
from probe.edges.steps import LayerRun, forward, taken_apart
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.interventions.call import AttentionCall
from probe.patching.effects import Effects, joined
from probe.patching.pairs import Pairs
from probe.patching.runs import Progress


class Patched:
    """A batch of pairs, ready for runs with some edges cut."""

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
        """Return the logits at END, [prompts, vocab], with edges at weights [receivers, senders], bool or in 0..1."""
        return self.run(weights)[0]

    @torch.no_grad()
    def run(self, weights: Tensor, *, start: int = 0, changes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits at END, and each sender's write less its corrupted one, [senders, prompts x tokens x hidden].

        start: the first layer to run. changes: the second result of a run with the same weights before that layer; it
        is overwritten from there on. Raises UsageError for weights of another shape, and for a start without changes.
        """
        graph, model = self.wiring.graph, self.wiring.model
        if weights.shape != graph.exists.shape:
            raise UsageError(f"weights must be {list(graph.exists.shape)}, got {list(weights.shape)}")
        if changes is None and start:
            raise UsageError(f"a run from layer {start} on needs the changes of earlier layers: pass changes=")
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
        """Run one layer, and put the writes of its heads and MLP, less their corrupted writes, into `found`."""
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
        """Return streams less the corrupted stream, [streams, prompts, tokens, hidden]; weights [streams, senders]."""
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
        """Return what a layer's heads add to streams, less what they add when corrupted; weights [streams, heads]."""
        maps = self.wiring.writes[layer]
        change = _mixed(weights, found[self.wiring.graph.written(layer)]).view(-1, *self.corrupted.mlp[layer].shape)
        if layer not in self._plain:
            return change
        plain = self._plain[layer]
        return maps.behind(plain + change) - maps.behind(plain)


def _mixed(weights: Tensor, found: Tensor) -> Tensor:
    """Return weighted sums of the changes of senders: [streams, senders] x [senders, prompts x tokens x hidden]."""
    used = weights.any(0).nonzero()[:, 0]
    if 2 * len(used) < weights.shape[1]:  # a sparse circuit
        return weights[:, used] @ found[used]
    return weights @ found[: weights.shape[1]]


def _assembled(calls: Sequence[AttentionCall], which: Sequence[int], heads: int, kv_heads: int) -> AttentionCall:
    """Return one call whose receivers, in the graph's order, take their operands from the calls that `which` names."""
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
    """Return the exact effect of each edge, in logits: the logit difference if it alone carries the corrupted write.

    Each edge costs a run from its receiver's layer on. batch and progress as in `logit_differences`.
    """
    graph = wiring.graph
    named = tuple(Edge(*edge) for edge in edges)
    places = [graph.place(edge) for edge in named]
    order = sorted(range(len(places)), key=lambda index: -places[index][0])  # later layers first: changes stay good
    parts, planned = [], batches(wiring, pairs, batch)
    for done, (rows, part) in enumerate(planned):
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
                progress(done * len(named) + count + 1, len(planned) * len(named))
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
    """Return the logit difference with each circuit's edges kept and all others cut, [circuits, prompts], in logits.

    circuits: circuits, or weights [receivers, senders] of edges within 0..1. batch: number of prompts that run at once;
    None takes what fits in 1 GB of float32. progress: called with (runs done, runs planned).
    """
    found = torch.empty(len(circuits), len(pairs))
    planned = batches(wiring, pairs, batch)
    for done, (rows, part) in enumerate(planned):
        patched = Patched(wiring, part)
        for index, circuit in enumerate(circuits):
            weights = circuit.kept if isinstance(circuit, EdgeCircuit) else circuit
            found[index, rows] = part.logit_difference(patched.logits(weights)).float().cpu()
            if progress is not None:
                progress(done * len(circuits) + index + 1, len(planned) * len(circuits))
    return found
