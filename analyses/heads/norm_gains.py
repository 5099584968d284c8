"""Gains of the norms around each head's OV circuit, measured: a norm is followed by the tensor that it hands over.

For a head h that reads the KV head g, value = x V_g and output = value O_h (row vectors, biases left out), so one key x
attended to with weight p adds p x V_g O_h to the residual stream. `probe.engine.projections` measures V and O. The
norms stand before the values, in some models after the output, and before the unembedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probe.models import Model


@dataclass(frozen=True, slots=True)
class Gain:
    """The linear part of a norm, without its division by the length of x: x -> (x - mean x, if centred) * gain."""

    gain: Tensor
    centred: bool

    def fold(self, following: Tensor) -> Tensor:
        """Return the map `following` with this norm in front of it: [hidden, n] -> [hidden, n]."""
        scaled = self.gain[:, None] * following
        return scaled - scaled.mean(0) if self.centred else scaled


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms of the OV path: of each layer before the values and after the output, and before the unembedding."""

    before: tuple[Gain | None, ...]
    after: tuple[Gain | None, ...]
    final: Gain | None

    def describe(self) -> str:
        """Say which gains are folded in, for the reader of a score that folds them."""
        layers = len(self.before)
        parts = []
        for name, gains in (("input norms", self.before), ("norms after the output projection", self.after)):
            count = sum(gain is not None for gain in gains)
            if count:
                parts.append(f"the {name}" if count == layers else f"the {name} of {count} of {layers} layers")
        if self.final is not None:
            parts.append("the final norm")
        return f"gains of {' and '.join(parts)} folded in" if parts else "no norm gains found to fold in"


@torch.no_grad()
def find_norms(model: Model) -> Norms:
    """Return the norms around each head's OV circuit; one short forward pass shows which tensors they hand on.

    A norm stands before the values when its output is the attention module's input, after them when its input is the
    module's output, and last when its output is the unembedding's input. None where there is no such norm.
    """
    trace = _Trace()
    modules = model.seam.modules
    head = model.hf.get_output_embeddings()
    followed = [module for module in model.hf.modules() if "norm" in type(module).__name__.lower()]
    followed += [*modules, *([head] if head is not None else [])]
    handles = [module.register_forward_hook(trace.note, with_kwargs=True) for module in followed]
    try:
        model.hf(input_ids=torch.ones(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    norms = [module for module in followed if module not in modules and module is not head and module in trace.inputs]

    def one(given: dict[nn.Module, Tensor], wanted: Tensor | None) -> Gain | None:
        found = [norm for norm in norms if _same(given[norm], wanted)]
        return measure_gain(found[0], size=given[found[0]].shape[-1]) if found else None

    return Norms(
        before=tuple(one(trace.outputs, trace.inputs.get(module)) for module in modules),
        after=tuple(one(trace.inputs, trace.outputs.get(module)) for module in modules),
        final=one(trace.outputs, trace.inputs.get(head)) if head is not None else None,
    )


@torch.no_grad()
def measure_gain(norm: nn.Module, *, size: int) -> Gain:
    """Return the gain [size] of a LayerNorm or RMSNorm from its effect on +1 and -1; float32 on the CPU."""
    like = next(norm.parameters(), torch.empty(0))
    signs = 1.0 - 2.0 * (torch.arange(size) % 2)
    probes = torch.stack([signs, -signs, torch.ones(size), -torch.ones(size)])
    plus, minus, ones, negative = norm(probes.to(like.device, like.dtype)).float().cpu()
    swing = (plus - minus) / 2
    centred = bool((ones - negative).abs().max() < 0.01 * swing.abs().max())
    entered = signs - signs.mean() if centred else signs
    return Gain(swing / (entered / entered.pow(2).mean().sqrt()), centred)


@dataclass
class _Trace:
    """The tensors that went into and came out of modules; holding them keeps their addresses from being used again."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.inputs[module] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.outputs[module] = result[0] if isinstance(result, tuple) else result


def _same(tensor: Tensor, wanted: Tensor | None) -> bool:
    """Return whether both are the same numbers in memory; a slice that keeps everything is a new object over them."""
    return wanted is not None and tensor.data_ptr() == wanted.data_ptr() and tensor.shape == wanted.shape
