"""What the senders of a run write, and the stream that its layers read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.edges.steps import LayerRun, forward, taken_apart
from probe.edges.wiring import Wiring

HELD = 2**28
"""How many numbers of what senders write may be held at once (1 GB in float32); prompts are batched to keep to it."""


@dataclass(frozen=True, eq=False)
class Side:
    """One run of a batch of prompts, by layer.

    entering [prompts, tokens, hidden]: the stream that enters; one more for the stream that leaves the last layer.
    z [prompts, heads, tokens, value_dim]: a linear map away from what heads write. attention, mlp [prompts, tokens,
    hidden]: what the layer's attention and MLP write. logits [prompts, vocab]: at the last column.
    """

    entering: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    logits: Tensor


@torch.no_grad()
def side(wiring: Wiring, ids: Tensor, padding: Tensor | None) -> Side:
    """The run of ids [prompts, tokens]."""
    entering: list[Tensor] = []
    outputs: list[Tensor] = []
    attention: list[Tensor] = []
    mlp: list[Tensor] = []

    def step(run: LayerRun, stream: Tensor) -> Tensor:
        def keep(z: Tensor, written: Tensor) -> Tensor:
            outputs.append(z)
            attention.append(written)
            return written

        entering.append(stream)
        mlp.append(run.run(stream, attended=keep))
        return stream + attention[-1] + mlp[-1]

    with taken_apart(wiring.model, step):
        logits = forward(wiring.model, ids, padding)
    entering.append(entering[-1] + attention[-1] + mlp[-1])
    return Side(tuple(entering), tuple(outputs), tuple(attention), tuple(mlp), logits)


def batch_size(wiring: Wiring, tokens: int, *, copies: int = 1) -> int:
    """How many prompts of so many tokens run at once, if what all senders write is held `copies` times."""
    hidden = wiring.writes[0].output.shape[-1]
    return max(1, HELD // (copies * len(wiring.graph.senders) * tokens * hidden))
