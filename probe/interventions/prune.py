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
        return replace(call, query=self._filled(call, call.query)) if self.fill == "uniform" else call

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        return output if self.fill == "uniform" else self._filled(call, output)

    def _filled(self, call: AttentionCall, states: Tensor) -> Tensor:
        """Return `states` [batch, heads, queries, dim] with zeros or means for the heads in the chosen rows."""
        heads = self.heads_in(call.layer)
        if not heads or (self.phase == "decode" and call.query.shape[2] > 1):
            return states
        states = states.clone()
        rows = slice(None) if self.rows is None else list(self.rows)
        for head in heads:
            states[rows, head] = 0 if self.reference is None else self.reference.mean(Head(call.layer, head)).to(states)
        return states
