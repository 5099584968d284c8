"""Edge attribution patching (EAP) and its integrated form (EAP-IG): all edges from a few passes.

EAP (Syed et al. 2023) takes the logit difference for a linear function of each receiver's input,

    score(u -> v) = sum over positions of (write of u, corrupted - write of u, clean) . d LD / d (input of v),

the gradient taken in the clean run: exact for an edge in the limit of a small change. EAP-IG (Hanna et al. 2024,
"inputs") averages the gradient over runs whose embeddings lie between the corrupted e' and the clean e, at
e' + t (e - e'). Which t is a choice: `points` "left" takes k/m for k = 0..m-1, as hannamw/EAP-IG's code (the corrupted
end included, the clean left out), "right" k = 1..m, as the paper's formula (the clean end included), "midpoint"
(k - 1/2)/m. Midpoint is the default: it favours neither end, and its error in m is the smallest of the three where the
gradient is smooth. Where it is not, as with saturated attention, too few steps of any can be worse than none. EAP is
"right" with one step.

The input of a receiver is the stream that enters its own copy of the norm before it, so a gradient is pulled back
through norm and projections for each head's query, each KV head's key and value, and each MLP on its own. This runs
backwards layer by layer, with one layer's graph at a time, through the modules of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from probe.edges.graph import Graph
from probe.edges.scores import EdgeScores
from probe.edges.sides import Side, batch_size, side
from probe.edges.steps import LayerRun, forward, taken_apart
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.interventions.base import AttentionCall
from probe.pairs import Pairs

Points = Literal["left", "midpoint", "right"]
Progress = Callable[[int, int], None]


def eap(
    wiring: Wiring,
    pairs: Pairs,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> EdgeScores:
    """EAP: scores of all edges from the gradient of the clean run, in logits."""
    found = _scores(wiring, pairs, [1.0], batch=batch, progress=progress)
    return replace(found, method="EAP")


def eap_ig(
    wiring: Wiring,
    pairs: Pairs,
    *,
    steps: int = 5,
    points: Points = "midpoint",
    batch: int | None = None,
    progress: Progress | None = None,
) -> EdgeScores:
    """EAP-IG (inputs): scores of all edges from gradients averaged over `steps` runs, in logits.

    batch: prompts that run at once, as many as memory is set aside for where None. progress: called with (runs done,
    runs planned). Raises UsageError for less than one step or unknown points.
    """
    found = _scores(wiring, pairs, grid(steps, points), batch=batch, progress=progress)
    return replace(found, method=f"EAP-IG, {steps} steps, {points}")


def grid(steps: int, points: Points) -> list[float]:
    """Where on the way from corrupted (0) to clean (1) embeddings gradients are taken."""
    if steps < 1:
        raise UsageError(f"expected at least one step, got {steps}")
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}.get(points)
    if shift is None:
        raise UsageError(f"points must be 'left', 'midpoint' or 'right', got {points!r}")
    return [(k + shift) / steps for k in range(steps)]


def _scores(
    wiring: Wiring, pairs: Pairs, at: list[float], *, batch: int | None, progress: Progress | None
) -> EdgeScores:
    graph = wiring.graph
    total = torch.zeros(graph.exists.shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    clean_ld, corrupted_ld = torch.empty(len(pairs)), torch.empty(len(pairs))
    size = batch or batch_size(wiring, pairs.clean.shape[1], copies=2)
    batches = list(pairs.batches(size))
    for index, (rows, part) in enumerate(batches):
        clean = side(wiring, part.clean, part.padding)
        corrupted = side(wiring, part.corrupted, part.padding)
        clean_ld[rows] = part.logit_difference(clean.logits).float().cpu()
        corrupted_ld[rows] = part.logit_difference(corrupted.logits).float().cpu()
        changes = _changes(wiring, clean, corrupted)
        found = torch.zeros(len(part), *graph.exists.shape)
        for step, t in enumerate(at):
            stream = corrupted.entering[0] + t * (clean.entering[0] - corrupted.entering[0])
            for receivers, gradients in _gradients(wiring, part, stream):
                reach = int(graph.reach[receivers.start])
                found[:, receivers, :reach] += torch.bmm(gradients, changes[:, :reach].transpose(1, 2)).float().cpu()
            if progress is not None:
                progress(index * len(at) + step + 1, len(batches) * len(at))
        found = found.double() / len(at)
        total += found.sum(0)
        squares += found.square().sum(0)
    count = len(pairs)
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0) * count / (count - 1) if count > 1 else mean * torch.nan
    return EdgeScores(graph, mean.float(), (spread / count).sqrt().float(), clean_ld, corrupted_ld, method="")


def _changes(wiring: Wiring, clean: Side, corrupted: Side) -> Tensor:
    """Corrupted less clean write of every sender, [prompts, senders, tokens x hidden]."""
    embedding = corrupted.entering[0] - clean.entering[0]
    found = embedding.new_empty(len(embedding), len(wiring.graph.senders), embedding[0].numel())
    found[:, 0] = embedding.flatten(1)
    for layer, maps in enumerate(wiring.writes):
        heads = wiring.graph.written(layer)
        found[:, heads] = maps.of(corrupted.scaled[layer] - clean.scaled[layer]).flatten(2)
        found[:, heads.stop] = (corrupted.mlp[layer] - clean.mlp[layer]).flatten(1)
    return found


def _gradients(wiring: Wiring, pairs: Pairs, embedding: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Receivers and the gradients of their inputs, [prompts, receivers, tokens x hidden], last receivers first.

    embedding [prompts, tokens, hidden]: what enters the first layer.
    """
    model, graph = wiring.model, wiring.graph
    runs: list[LayerRun] = []
    entering: list[Tensor] = []
    last: list[Tensor] = []

    @torch.no_grad()
    def step(run: LayerRun, entered: Tensor) -> Tensor:
        stream = embedding if run.layer == 0 else entered
        wrote: list[Tensor] = []

        def keep(z: Tensor, written: Tensor) -> Tensor:
            wrote.append(written)
            return written

        runs.append(run)
        entering.append(stream)
        left = stream + run.run(stream, attended=keep) + wrote[0]
        if run.layer == graph.layers - 1:
            last.append(left.requires_grad_())
        return left

    with taken_apart(model, step):
        with torch.enable_grad():
            difference = pairs.logit_difference(forward(model, pairs.clean, pairs.padding)).sum()
            (gradient,) = torch.autograd.grad(difference, last[0])
        logits = len(graph.receivers) - 1
        yield slice(logits, logits + 1), gradient.flatten(1)[:, None]
        for layer in reversed(range(graph.layers)):
            pulled = _pulled_back(graph, runs[layer], entering[layer], gradient)
            yield slice(graph.mlp(layer), graph.mlp(layer) + 1), pulled.mlp.flatten(1)[:, None]
            yield graph.attention(layer), pulled.attention.flatten(2)
            gradient = gradient + pulled.mlp + pulled.attention.sum(1)


@dataclass(frozen=True)
class _Pulled:
    """Gradients of one layer's inputs: mlp [prompts, tokens, hidden], attention [prompts, receivers, tokens, hidden]."""

    mlp: Tensor
    attention: Tensor


@torch.enable_grad()
def _pulled_back(graph: Graph, run: LayerRun, stream: Tensor, gradient: Tensor) -> _Pulled:
    """From the gradient of the stream that leaves a layer, those of the inputs of all its receivers."""
    stream = stream.detach().requires_grad_()
    read: list[Tensor] = []
    given: list[Tensor] = []
    wrote: list[Tensor] = []

    def cut(call: AttentionCall) -> AttentionCall:
        read.extend((call.query, call.key, call.value))
        given.extend(each.detach().requires_grad_() for each in read)
        return replace(call, query=given[0], key=given[1], value=given[2])

    def keep(z: Tensor, written: Tensor) -> Tensor:
        wrote.append(written)
        return written.detach()

    mlp = run.run(stream, operands=cut, attended=keep)
    (for_mlp,) = torch.autograd.grad(mlp, stream, gradient, retain_graph=True)
    behind = gradient if graph.parallel[run.layer] else gradient + for_mlp
    operands = torch.autograd.grad(wrote[0], given, behind)
    pulled = []
    for output, own in zip(read, operands, strict=True):
        for head in range(own.shape[1]):
            one = torch.zeros_like(own)
            one[:, head] = own[:, head]
            pulled.append(torch.autograd.grad(output, stream, one, retain_graph=True)[0])
    return _Pulled(for_mlp, torch.stack(pulled, 1))
