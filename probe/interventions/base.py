"""What may an intervention change? The operands, the pattern of weights and the outputs of one attention call.

For each call of each layer, the engine runs the interventions in force three times, in their order: `before` attention
is computed, `repattern` when the operands are final, and `after` the heads' outputs are known. A subclass overrides the
step that it needs. Statistics describe the attention that was computed: edits of operands and pattern show in them,
edits of outputs do not, because they leave the pattern unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from probe.heads import Head
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern

LISTED = 64
"""A manifest holds a tensor of up to this number of values in full, and a larger one by its shape and hash."""


class Intervention:
    """A change of attention. Subclasses are frozen dataclasses and override one or more of three steps.

    before: other operands.    repattern: another pattern of weights.    after: another output of the heads (z).

    The object that `running` returns keeps everything that must be remembered from one call to the next.
    """

    @property
    def heads_named(self) -> tuple[Head, ...]:
        """Return the heads that this changes; the model checks that it has them before anything runs."""
        return ()

    def running(self) -> Intervention:
        """Return the intervention that acts inside one context: itself, unless it must remember something there."""
        return self

    def before(self, call: AttentionCall) -> AttentionCall:
        """Return the call to compute instead of `call`."""
        return call

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        """Look at the pattern as earlier interventions left it, and edit it."""

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Return the output to use instead of `output` [batch, heads, queries, value_dim], not to be edited."""
        return output

    def describe(self) -> dict:
        """Return what a manifest says of this: the class and its fields, heads by name, large tensors by hash."""
        described = fields(self)  # pyright: ignore[reportArgumentType]
        return {"intervention": type(self).__name__} | {
            field.name: _plain(getattr(self, field.name)) for field in described
        }


@dataclass(frozen=True)
class OnHeads(Intervention):
    """An intervention on some heads. A head that is named twice counts once."""

    heads: Sequence[Head | tuple[int, int]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(dict.fromkeys(Head(*head) for head in self.heads)))

    @property
    def heads_named(self) -> tuple[Head, ...]:
        """Return the heads that this changes."""
        return tuple(self.heads)  # pyright: ignore[reportReturnType]  # made of Head in __post_init__

    def heads_in(self, layer: int) -> list[int]:
        """Return the numbers of the heads in a layer, in their order."""
        return [head.head for head in self.heads_named if head.layer == layer]


def _plain(value: Any) -> object:
    if isinstance(value, Head):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.numel() <= LISTED:
            return value.tolist()
        digest = hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"shape": list(value.shape), "sha256": digest}
    return value.describe() if hasattr(value, "describe") else value
