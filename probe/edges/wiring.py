"""Which edges does a model have, and how do its heads write? Both are measured once, by running the model.

A layer is parallel if its MLP reads the stream without the writes of the layer's heads. That is tested by changing what
attention writes: in a parallel layer the input of the MLP does not change.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.edges.graph import Graph
from probe.edges.head_writes import HeadWrites, head_writes
from probe.edges.steps import LayerRun, forward, taken_apart
from probe.engine.hooks import installed

if TYPE_CHECKING:
    from probe.models import Model


class Wiring:
    """A model, its graph of edges, and by layer the map by which its heads write. Both are measured on first use.

    `writes` holds a copy of each layer's output projection: heads x value_dim x hidden numbers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def graph(self) -> Graph:
        """Return the graph of the model's edges, from one short forward pass."""
        return Graph(self.model.n_layers, self.model.n_heads, self.model.n_kv_heads, _parallel(self.model))

    @cached_property
    def writes(self) -> tuple[HeadWrites, ...]:
        """Return by layer how heads write. Raises ProbeError if they do not write linearly in z."""
        return head_writes(self.model)


@torch.no_grad()
def _parallel(model: Model) -> tuple[bool, ...]:
    """Return by layer whether the input of its MLP is the same whatever its attention writes."""
    found: list[bool] = []

    def step(run: LayerRun, stream: Tensor) -> Tensor:
        given: list[Tensor] = []
        wrote: list[Tensor] = []

        def keep(z: Tensor, written: Tensor) -> Tensor:
            wrote.append(written)
            return written

        writer = model.stream.writers(run.layer)[1]
        with installed(writer.register_forward_pre_hook(lambda _, args: given.append(args[0]))):
            mlp = run.run(stream, attended=keep)
            run.run(stream, attended=lambda z, written: written + stream)
        found.append(torch.equal(*given))
        return stream + wrote[0] + mlp

    with taken_apart(model, step):
        forward(model, (torch.arange(1, 9) % model.vocab)[None], None)
    return tuple(found)
