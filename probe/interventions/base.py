"""What an intervention sees and may change: one attention call of one layer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor, nn

from probe.heads import Head
from probe.kernels.contract import Mask


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """The operands of one layer's attention, after rotary embedding.

    query [batch, heads, queries, head_dim]; key [batch, kv_heads, keys, head_dim]; value [batch, kv_heads, keys,
    value_dim]; scale multiplies the scores; softcap and sinks ([heads] learned logits) are None where the model has
    none. module is the model's own attention module, whose output projection comes next.
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


class Intervention:
    """A change of attention: edit the operands before, or the output after. Subclasses are frozen dataclasses.

    Statistics describe the attention that was computed, so an edit of the operands shows in them.
    """

    @property
    def heads_named(self) -> tuple[Head, ...]:
        """The heads this touches, checked against the model before anything runs."""
        return ()

    def before(self, call: AttentionCall) -> AttentionCall:
        """The call to compute instead of `call`."""
        return call

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        """The output to use instead of `output` [batch, heads, queries, value_dim]; must not edit it in place."""
        return output

    def describe(self) -> dict:
        """What was done, for the manifest: the class and its fields, heads by name."""
        return {"intervention": type(self).__name__} | {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)  # pyright: ignore[reportArgumentType]
        }


def _plain(value: object) -> object:
    if isinstance(value, Head):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
