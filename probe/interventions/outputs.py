"""Edits of what heads write: z scaled by a gate, replaced by another run's, or blended with another intervention's.

z is a head's output before the output projection, [batch, heads, queries, value_dim]. The pattern stays as it is, so
statistics recorded beside these are those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import AttentionCall, Intervention, OnHeads
from probe.interventions.pattern import Pattern
from probe.kernels.contract import Request


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """z of a run, by layer: [batch, heads, tokens, value_dim]. prompts: hashes of what was run."""

    z: Mapping[int, Tensor]
    prompts: tuple[str, ...] = ()

    def mean(self, head: Head) -> Tensor:
        """A head's z averaged over texts and positions, [value_dim]."""
        return self.of(head.layer)[:, head.head].flatten(0, 1).mean(0)

    def of(self, layer: int) -> Tensor:
        """A layer's z. Raises UsageError where the run did not record it."""
        if layer not in self.z:
            raise UsageError(f"layer {layer} is not among the recorded outputs of layers {sorted(self.z)}")
        return self.z[layer]

    def describe(self) -> dict:
        """What stands for it in a manifest."""
        shape = list(next(iter(self.z.values())).shape)
        return {"layers": sorted(self.z), "shape": shape, "prompts": list(self.prompts)}


class RecordOutputs(Intervention):
    """Changes nothing, and keeps z of the layers asked for; passes of one prompt follow one another."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._z: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        if call.layer in self._z:
            self._z[call.layer].append(output.detach())
        return output

    def outputs(self, prompts: Sequence[str] = ()) -> HeadOutputs:
        """What was recorded."""
        return HeadOutputs({layer: torch.cat(passes, 2) for layer, passes in self._z.items()}, tuple(prompts))


@dataclass(frozen=True, eq=False)
class ScaleHeads(OnHeads):
    """Multiply each head's z by its gate. A tensor of gates, one for each head, gets gradients."""

    gates: Tensor | float

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.gates, Tensor) and self.gates.shape != (len(self.heads),):
            raise UsageError(f"gates must be one for each of {len(self.heads)} heads, got {list(self.gates.shape)}")

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        places = [place for place, head in enumerate(self.heads_named) if head.layer == call.layer]
        if not places:
            return output
        gates = torch.as_tensor(self.gates, device=output.device).expand(len(self.heads))[places].to(output.dtype)
        factor = output.new_ones(output.shape[1]).index_copy(
            0, torch.tensor(self.heads_in(call.layer), device=output.device), gates
        )
        return output * factor[:, None, None]


@dataclass(frozen=True, eq=False)
class PatchHeads(OnHeads):
    """Replace z of heads by that of another run, at `positions` or everywhere.

    source: from `model.head_outputs`. positions: which positions, None for all, and then both runs must be as long.
    Positions beyond the other run, as in a generation, keep their own z where `positions` is None.
    """

    source: HeadOutputs
    positions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions is not None:
            object.__setattr__(self, "positions", tuple(self.positions))
        for head in self.heads_named:
            length = self.source.of(head.layer).shape[2]
            if self.positions is not None and not all(0 <= position < length for position in self.positions):
                raise UsageError(f"positions must lie in the source's 0..{length - 1}, got {list(self.positions)}")

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        heads = self.heads_in(call.layer)
        if not heads:
            return output
        z = self.source.of(call.layer).to(output)
        if z.shape[0] not in (1, output.shape[0]) or z.shape[3] != output.shape[3]:
            raise UsageError(f"the source has z of {list(z.shape)}, which does not fit {list(output.shape)}")
        if self.positions is None and call.queries.start == 0 and z.shape[2] != output.shape[2]:
            raise UsageError(
                f"the source has {z.shape[2]} tokens and the prompt {output.shape[2]}: give both as many, "
                "or name positions"
            )
        wanted = range(z.shape[2]) if self.positions is None else self.positions
        at = [position for position in wanted if position in call.queries]
        if not at:
            return output
        output = output.clone()
        rows = torch.tensor([position - call.queries.start for position in at], device=output.device)
        for head in heads:
            output[:, head, rows] = z[:, head, at]
        return output


@dataclass(frozen=True, eq=False)
class Blend(Intervention):
    """Another intervention on the pattern, each head as far as its gate goes: z + gate (z_edited - z).

    gates: [layers, heads]. Their gradients at 0 are those of the loss for editing one head more, all from one backward
    pass; the edit itself counts as a constant there, as it must at 0.
    """

    edit: Intervention
    gates: Tensor

    @property
    def heads_named(self) -> tuple[Head, ...]:
        return self.edit.heads_named

    def __post_init__(self) -> None:
        named = self.heads_named
        needed = [1 + max((head[axis] for head in named), default=0) for axis in (0, 1)]
        if self.gates.ndim != 2 or any(size < least for size, least in zip(self.gates.shape, needed, strict=True)):
            raise UsageError(f"gates must be [layers, heads] of the model, got {list(self.gates.shape)}")

    def running(self) -> Intervention:
        return Blend(self.edit.running(), self.gates)

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        with torch.no_grad():
            pattern = Pattern(call)
            self.edit.repattern(call, pattern)
            if not pattern.edited:
                return output
            edited = output.index_copy(
                1,
                torch.tensor(pattern.edited, device=output.device),
                pattern.attend(pattern.edited, Request())[0].to(output.dtype),
            )
        return output + self.gates[call.layer, :, None, None].to(output.dtype) * (edited - output)
