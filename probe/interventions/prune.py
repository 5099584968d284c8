"""Head pruning: z = 0, or the uniform attention that the official retrieval-head mask amounts to.

zero:    z_h = 0, the head writes nothing.
uniform: the query is set to 0, so every visible key gets the same weight and z_h is the mean of the visible values
         (Wu et al. 2024, released code, flash path). It replaces the head by an average rather than removing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import AttentionCall, Intervention


@dataclass(frozen=True)
class PruneHeads(Intervention):
    """Remove heads. `phase="decode"` touches only calls with a single query; `rows` limits it to rows of the batch."""

    heads: Sequence[Head | tuple[int, int]]
    fill: Literal["zero", "uniform"] = "zero"
    phase: Literal["all", "decode"] = "all"
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(Head(*head) for head in self.heads))
        if self.fill not in ("zero", "uniform"):
            raise UsageError(f"fill must be 'zero' or 'uniform', got {self.fill!r}")
        if self.phase not in ("all", "decode"):
            raise UsageError(f"phase must be 'all' or 'decode', got {self.phase!r}")
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(self.rows))

    @property
    def heads_named(self) -> tuple[Head, ...]:
        return tuple(self.heads)  # pyright: ignore[reportReturnType]  # made of Head in __post_init__

    def before(self, call: AttentionCall) -> AttentionCall:
        if self.fill != "uniform" or not self._applies(call):
            return call
        return replace(call, query=self._zeroed(call.query, call.layer))

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        if self.fill != "zero" or not self._applies(call):
            return output
        return self._zeroed(output, call.layer)

    def _applies(self, call: AttentionCall) -> bool:
        decoding = call.query.shape[2] == 1
        return (self.phase == "all" or decoding) and any(head.layer == call.layer for head in self.heads_named)

    def _zeroed(self, states: Tensor, layer: int) -> Tensor:
        """`states` [batch, heads, queries, dim] with this layer's heads (in the chosen rows) set to zero."""
        keep = states.new_ones(states.shape[0], states.shape[1], 1, 1)
        heads = [head.head for head in self.heads_named if head.layer == layer]
        rows = range(states.shape[0]) if self.rows is None else self.rows
        for row in rows:
            keep[row, heads] = 0
        return states * keep
