"""What an intervention sees and may change: one attention call of one layer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.heads import Head
from probe.kernels.contract import Mask

if TYPE_CHECKING:
    from probe.interventions.pattern import Pattern

LISTED = 64
"""A tensor of at most so many numbers stands in a manifest as it is, a larger one as its shape and hash."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """The operands of one layer's attention, after rotary embedding.

    query [batch, heads, queries, head_dim]; key [batch, kv_heads, keys, head_dim]; value [batch, kv_heads, keys,
    value_dim]; scale multiplies the scores; softcap and sinks ([heads] learned logits) are None where the model has
    none. module is the model's own attention module, whose output projection comes next. edited names the heads whose
    pattern an intervention has edited.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    edited: tuple[int, ...] = ()

    @property
    def queries(self) -> range:
        """Positions of the queries."""
        return range(self.mask.first_query, self.mask.first_query + self.query.shape[2])

    @property
    def keys(self) -> range:
        """Positions of the keys."""
        return range(self.mask.first_key, self.mask.first_key + self.key.shape[2])


class Intervention:
    """A change of attention. Subclasses are frozen dataclasses, and override one or more of three steps.

    before: other operands.    repattern: another pattern of weights.    after: another output of the heads (z).

    Statistics describe the attention that was computed: edits of operands and pattern show in them, edits of z, which
    leave the pattern as it is, do not. What lasts from one call to the next is kept by the object that `running` makes.
    """

    @property
    def heads_named(self) -> tuple[Head, ...]:
        """The heads this touches, checked against the model before anything runs."""
        return ()

    def running(self) -> Intervention:
        """What acts inside one context; itself, unless it must remember something there."""
        return self

    def before(self, call: AttentionCall) -> AttentionCall:
        """The call to compute instead of `call`."""
        return call

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        """Look at the pattern as earlier interventions left it, and edit it."""

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        """The output to use instead of `output` [batch, heads, queries, value_dim]; must not edit it in place."""
        return output

    def describe(self) -> dict:
        """What was done, for the manifest: the class and its fields, heads by name, large tensors by hash."""
        described = fields(self)  # pyright: ignore[reportArgumentType]
        return {"intervention": type(self).__name__} | {
            field.name: _plain(getattr(self, field.name)) for field in described
        }


@dataclass(frozen=True)
class OnHeads(Intervention):
    """An intervention on some heads; one that is named twice counts once."""

    heads: Sequence[Head | tuple[int, int]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(dict.fromkeys(Head(*head) for head in self.heads)))

    @property
    def heads_named(self) -> tuple[Head, ...]:
        return tuple(self.heads)  # pyright: ignore[reportReturnType]  # made of Head in __post_init__

    def heads_in(self, layer: int) -> list[int]:
        """The heads' numbers in a layer, in their order."""
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
