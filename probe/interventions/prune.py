"""What is lost without a head? Pruning removes its output z, or replaces it by an average. There are three fills.

zero:    z = 0. The head writes nothing.
mean:    z = its mean over the texts and positions of a reference run. The part that is the same in all texts stays.
uniform: the query is set to 0, so that every visible key gets the same weight and z is the mean of the visible values.
         This is the mask of the released code of Wu et al. 2024 (its flash path), here called the official mask. It
         replaces the head by an average and does not remove it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import OnHeads
from probe.interventions.call import AttentionCall
from probe.interventions.outputs import HeadOutputs


@dataclass(frozen=True)
class PruneHeads(OnHeads):
    """Remove heads, by one of the fills of the module docstring.

    phase: "decode" changes only calls with a single query, "all" every call. rows: the rows of the batch to change;
    None is all. reference: for fill "mean", the outputs to average, from `model.head_outputs`.
    """

    fill: Literal["zero", "mean", "uniform"] = "zero"
    phase: Literal["all", "decode"] = "all"
    rows: Sequence[int] | None = None
    reference: HeadOutputs | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill not in ("zero", "mean", "uniform"):
            raise UsageError(f"fill must be 'zero', 'mean' or 'uniform', got {self.fill!r}")
        if (self.fill == "mean") != (self.reference is not None):
            raise UsageError("fill 'mean' needs reference=model.head_outputs(...), and the other fills take none")
        if self.reference is not None:
            for head in self.heads_named:
                self.reference.of(head.layer)
        if self.phase not in ("all", "decode"):
            raise UsageError(f"phase must be 'all' or 'decode', got {self.phase!r}")
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(self.rows))

    def before(self, call: AttentionCall) -> AttentionCall:
        if self.fill != "uniform" or not self._applies(call):
            return call
        return replace(call, query=self._zeroed(call.query, call.layer))

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        if self.fill == "uniform" or not self._applies(call):
            return output
        zeroed = self._zeroed(output, call.layer)
        return zeroed if self.reference is None else zeroed + self._means(output, call.layer)

    def _applies(self, call: AttentionCall) -> bool:
        decoding = call.query.shape[2] == 1
        return (self.phase == "all" or decoding) and any(head.layer == call.layer for head in self.heads_named)

    def _zeroed(self, states: Tensor, layer: int) -> Tensor:
        """Return `states` [batch, heads, queries, dim] with this layer's heads set to zero in the chosen rows."""
        keep = states.new_ones(states.shape[0], states.shape[1], 1, 1)
        for row in self._rows(states):
            keep[row, self.heads_in(layer)] = 0
        return states * keep

    def _means(self, states: Tensor, layer: int) -> Tensor:
        """Return [batch, heads, 1, dim]: the means of this layer's heads in the chosen rows, zero elsewhere."""
        means = states.new_zeros(*states.shape[:2], 1, states.shape[3])
        for head in self.heads_in(layer):
            for row in self._rows(states):
                means[row, head, 0] = self.reference.mean(Head(layer, head)).to(states)  # pyright: ignore
        return means

    def _rows(self, states: Tensor) -> Sequence[int]:
        return range(states.shape[0]) if self.rows is None else self.rows
