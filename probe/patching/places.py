"""Which total effect does a place in the model have? Activation patching measures it exactly, place by place.

In a run of the clean prompt, one place takes the value that it has in the run of the corrupted prompt, and everything
behind it is recomputed. A place is z of a head, a query, key or value, the output of an MLP, or the stream that enters
a layer. A patched run begins at the place's layer and at the first column that changes, on the clean run's cache. If
only END is patched, it is one decoding step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall
from probe.patching.columns import END, covered
from probe.patching.effects import Effects
from probe.patching.nodes import MLP, OPERANDS, Input, Place, Stream, checked
from probe.patching.runs import Activations, Progress, Tail, first_difference, patched_effects

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs


def patch(
    model: Model,
    pairs: Pairs,
    places: Sequence[Place],
    *,
    at: str | Tensor = END,
    batch: int = 40,
    progress: Progress | None = None,
) -> Effects:
    """Return the total effect of each place on the logit difference.

    at: "END", "all", the name of a role, or [prompts, tokens] bool. batch: number of prompts that run at once.
    progress: called with (places done, places planned), over all batches. Raises UsageError for a place that the model
    does not have, and for columns that the pairs do not have.
    """
    nodes = checked(model, places, "place to patch was given: name at least one head, MLP, input or stream")
    if not model.stream.split and any(isinstance(node, MLP) for node in nodes):
        raise UsageError(
            f"the writes of attention and MLP in {model.name} cannot be told apart: patch heads or the stream"
        )
    whole = covered(pairs, at)

    def begin(
        rows: Tensor, part: Pairs, clean: Activations, corrupted: Activations
    ) -> tuple[Tail, Callable[[list[Place]], Tensor]]:
        mask = whole[rows, -part.clean.shape[1] :]
        reached = mask.any(0).nonzero()[:, 0]
        first = int(reached[0]) if len(reached) else part.end
        tail = Tail(model, part, clean, first=max(first, first_difference(part)))

        def change(some: list[Place]) -> Tensor:
            found = _Patched(tail, corrupted, some, mask).run(some[0].layer, clean)
            changed = torch.stack([_changed(node, clean, corrupted, mask) for node in some])
            return torch.where(changed, found[1:] - found[0], 0)

        return tail, change

    return patched_effects(model, pairs, nodes, begin, batch=batch, progress=progress)


class _Patched(Intervention):
    """Copies of the prompts run at once: copy 0 is clean, copy n has the n-th node patched at the masked columns."""

    def __init__(self, tail: Tail, corrupted: Activations, nodes: list[Place], mask: Tensor) -> None:
        self._tail, self._corrupted, self._nodes, self._mask = tail, corrupted, nodes, mask
        self._size = len(tail.pairs)

    def run(self, layer: int, clean: Activations) -> Tensor:
        """Return logit differences [copies, prompts]."""
        tail, copies = self._tail, len(self._nodes) + 1
        entering = tail.copies(clean.entering[layer], copies)
        for own, node in self._rows(layer):
            if isinstance(node, Stream):
                entering[own] = self._mixed(entering[own], node)
        hooks: list[AbstractContextManager[None]] = []
        if any(isinstance(node, MLP) for node in self._nodes):

            def write(states: Tensor) -> Tensor:
                found = states.clone().view(entering.shape)
                for own, node in self._rows(layer):
                    if isinstance(node, MLP):
                        found[own] = self._mixed(found[own], node)
                return found.view_as(states)

            hooks.append(tail.stream.writing(layer, write))
        return tail.run(layer, entering, self, hooks=hooks)

    def before(self, call: AttentionCall) -> AttentionCall:
        for own, node in self._rows(call.layer):
            if isinstance(node, Input):
                name = OPERANDS[node.kind]
                states = getattr(call, name).clone()
                states[own, node.head] = self._mixed(states[own, node.head], node)
                call = replace(call, **{name: states})
        return call

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        heads = [(own, node) for own, node in self._rows(call.layer) if isinstance(node, Head)]
        if not heads:
            return output
        output = output.clone()
        for own, node in heads:
            output[own, node.head] = self._mixed(output[own, node.head], node)
        return output

    def _rows(self, layer: int) -> list[tuple[slice, Place]]:
        return [
            (slice(copy * self._size, (copy + 1) * self._size), node)
            for copy, node in enumerate(self._nodes, start=1)
            if node.layer == layer
        ]

    def _mixed(self, states: Tensor, node: Place) -> Tensor:
        """Return states [prompts, columns, ...] with the corrupted run's at the masked columns; all end with END."""
        width = states.shape[1]
        mask = self._mask[:, -width:, None].to(states.device)
        return torch.where(mask, _values(node, self._corrupted)[:, -width:].to(states), states)


def _changed(node: Place, clean: Activations, corrupted: Activations, mask: Tensor) -> Tensor:
    """Return [prompts] bool: whether the patch changes any value. If not, its effect is 0 whatever the rounding."""
    one, other = (_values(node, run) for run in (clean, corrupted))
    return ((one != other).any(-1).cpu() & mask).any(1)


def _values(node: Place, run: Activations) -> Tensor:
    """Return the values of a run at a node, [prompts, tokens, ...]."""
    if isinstance(node, Head):
        return run.z[node.layer][:, node.head]
    if isinstance(node, Input):
        return getattr(run, OPERANDS[node.kind])[node.layer][:, node.head]
    if isinstance(node, MLP):
        return run.mlp[node.layer].view_as(run.entering[node.layer])
    return run.entering[node.layer]
