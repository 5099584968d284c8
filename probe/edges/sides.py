"""What do the senders of a run write, and which stream do its layers read? A side of the pairs is run once and kept.

The difference between the writes on the clean and the corrupted side is what an edge carries or loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.edges.steps import LayerRun, forward, taken_apart
from probe.edges.wiring import Wiring
from probe.patching.pairs import Pairs

HELD = 2**28
"""Largest count of numbers held at once for the writes of senders (1 GB in float32); batches of prompts keep to it."""


@dataclass(frozen=True, eq=False)
class Side:
    """One run of a batch of prompts, by layer.

    entering [prompts, tokens, hidden]: the stream that enters the layer, and last the stream that leaves the model.
    z [prompts, heads, tokens, value_dim]: the heads' outputs, which a linear map turns into what heads write.
    attention, mlp [prompts, tokens, hidden]: what the layer's attention and MLP write. logits [prompts, vocab]: at the
    last column.
    """

    entering: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    logits: Tensor


@torch.no_grad()
def side(wiring: Wiring, ids: Tensor, padding: Tensor | None) -> Side:
    """Return the run of ids [prompts, tokens]."""
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


def batches(wiring: Wiring, pairs: Pairs, size: int | None = None) -> list[tuple[Tensor, Pairs]]:
    """Return rows and pairs, `size` at a time; None takes the prompts whose writes, on both sides, stay below HELD."""
    width = wiring.writes[0].output.shape[-1] * pairs.clean.shape[1]
    return list(pairs.batches(size or max(1, HELD // (2 * len(wiring.graph.senders) * width))))
