"""What happens if a head writes something else? Its output z is scaled, replaced by another run's, or blended.

z = sum_j p_ij v_j is a head's output before the output projection, [batch, heads, queries, value_dim].

    ScaleHeads   z <- gate z; gates get gradients
    PatchHeads   z <- z of another run, at some or all positions
    Blend        z <- z + gate (z under another intervention - z)

The pattern of weights does not change, so statistics that are recorded beside these edits are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention, OnHeads
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern
from probe.kernels.contract import Request


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """The outputs z of a run, by layer: [batch, heads, tokens, value_dim]. prompts: hashes of the prompts that ran."""

    z: Mapping[int, Tensor]
    prompts: tuple[str, ...] = ()

    def mean(self, head: Head) -> Tensor:
        """Return a head's z averaged over texts and positions, [value_dim]."""
        return self.of(head.layer)[:, head.head].flatten(0, 1).mean(0)

    def of(self, layer: int) -> Tensor:
        """Return a layer's z. Raises UsageError if the run did not record that layer."""
        if layer not in self.z:
            raise UsageError(
                f"the outputs of layer {layer} were not recorded, only those of layers {sorted(self.z)}: name it in "
                "model.head_outputs(..., layers=...)"
            )
        return self.z[layer]

    def describe(self) -> dict:
        """Return what a manifest says of these outputs: layers, shape and prompts."""
        shape = list(next(iter(self.z.values())).shape)
        return {"layers": sorted(self.z), "shape": shape, "prompts": list(self.prompts)}


class RecordOutputs(Intervention):
    """Change nothing, and keep z of the given layers; passes of one prompt follow one another."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._z: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        if call.layer in self._z:
            self._z[call.layer].append(output.detach())
        return output

    def outputs(self, prompts: Sequence[str] = ()) -> HeadOutputs:
        """Return the outputs that were recorded, over all passes."""
        return HeadOutputs({layer: torch.cat(passes, 2) for layer, passes in self._z.items()}, tuple(prompts))


@dataclass(frozen=True, eq=False)
class ScaleHeads(OnHeads):
    """Multiply each head's z by its gate. A tensor of gates, one for each head, receives gradients."""

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

    source: outputs from `model.head_outputs`. positions: the positions to patch; None is all, and then both prompts
    must have the same length. Positions after the other run's, as in a generation, are not patched.
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
            raise UsageError(
                f"the source has z of {list(z.shape)} and this run of {list(output.shape)}: take the source from the "
                "same model, with one text or the same number of texts"
            )
        if self.positions is None and call.queries.start == 0 and z.shape[2] != output.shape[2]:
            raise UsageError(
                f"the source has {z.shape[2]} tokens and the prompt {output.shape[2]}: give both the same number of "
                "tokens, or name positions"
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
    """Apply another intervention on the pattern to the degree of each head's gate: z + gate (z_edited - z).

    gates: [layers, heads]. At gates of 0, the gradient of a loss for the gates is the slope of the loss for editing one
    more head, for all heads from one backward pass. The edit itself counts as a constant, which is exact at 0.
    """

    edit: Intervention
    gates: Tensor

    @property
    def heads_named(self) -> tuple[Head, ...]:
        """Return the heads that the other intervention changes."""
        return self.edit.heads_named

    def __post_init__(self) -> None:
        named = self.heads_named
        needed = [1 + max((head[axis] for head in named), default=0) for axis in (0, 1)]
        if self.gates.ndim != 2 or any(size < least for size, least in zip(self.gates.shape, needed, strict=True)):
            raise UsageError(f"gates must be [layers, heads] of the model, got {list(self.gates.shape)}")

    def running(self) -> Intervention:
        """Return a blend of the other intervention as it runs in one context."""
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
