"""A model with its edges: the graph, and the map by which each layer's heads write; both are found, not looked up."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.edges.graph import Graph
from probe.edges.head_writes import HeadWrites, head_writes
from probe.edges.steps import LayerRun, forward, taken_apart

if TYPE_CHECKING:
    from probe.models import Model


class Wiring:
    """What edge patching needs of a model, found out once: `graph` in a short forward pass, `writes` by layer.

    writes holds a copy of each layer's output projection: heads x value_dim x hidden numbers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.model.n_layers, self.model.n_heads, self.model.n_kv_heads, _parallel(self.model))

    @cached_property
    def writes(self) -> tuple[HeadWrites, ...]:
        return head_writes(self.model)


@torch.no_grad()
def _parallel(model: Model) -> tuple[bool, ...]:
    """By layer, whether what its MLP is given is the same whatever its attention writes."""
    found: list[bool] = []

    def step(run: LayerRun, stream: Tensor) -> Tensor:
        given: list[Tensor] = []
        wrote: list[Tensor] = []

        def keep(z: Tensor, written: Tensor) -> Tensor:
            wrote.append(written)
            return written

        handle = model.stream.writers(run.layer)[1].register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            mlp = run.run(stream, attended=keep)
            run.run(stream, attended=lambda z, written: written + stream)
        finally:
            handle.remove()
        found.append(torch.equal(*given))
        return stream + wrote[0] + mlp

    with taken_apart(model, step):
        forward(model, (torch.arange(1, 9) % model.vocab)[None], None)
    return tuple(found)
