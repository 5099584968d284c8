"""Does the engine see and steer the attention that the model really uses? A short prompt proves it when a model loads.

The seam is the place where the model calls the engine. `check_seam` runs a short prompt four times and compares:

1. Every layer's attention comes through the engine once, and its rows sum to one.
2. The logits equal those of the model's former implementation, up to rounding between two kernels.
3. Pruning a head in the engine gives the logits that zeroing its columns at the output projection gives.
4. Those logits differ from the whole model's.

A model that fails one of these is refused by name, because its statistics would describe something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.engine.attention import engaged
from probe.engine.hooks import installed
from probe.errors import ProbeError
from probe.heads import Head
from probe.interventions.call import AttentionCall
from probe.interventions.prune import PruneHeads
from probe.kernels.contract import Request, Statistics

# Rounding allowed between two attention kernels, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Seam:
    """The check learns the attention module of each layer, the number of heads, their sizes and the largest deviations.

    row_error: largest distance of a row's sum from one. logit_error: relative to the largest logit.
    """

    modules: tuple[nn.Module, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    row_error: float
    logit_error: float


class _Rows:
    """An observer that keeps the calls and the sum of every row."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.row_sums: list[Tensor] = []

    def request(self, call: AttentionCall) -> Request:
        keys = call.key.shape[2]
        return Request(lse=True, sets=torch.ones(1, 1, 1, keys, dtype=torch.bool, device=call.key.device))

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        assert statistics.mass is not None and statistics.lse is not None
        row_sum = statistics.mass[..., 0]
        if call.sinks is not None:  # the sink takes the rest
            row_sum = row_sum + torch.exp(call.sinks.float()[None, :, None] - statistics.lse)
        self.calls.append(call)
        self.row_sums.append(row_sum.cpu())


@torch.no_grad()
def check_seam(hf: PreTrainedModel, ids: Tensor, layers: int) -> Seam:
    """Run `ids` [1, tokens] as the module docstring says, and return the facts that were measured on the way.

    layers: number of layers that must come through the engine. Raises ProbeError, naming the architecture, if one of
    the comparisons fails.
    """
    name = type(hf).__name__
    ids = ids.to(hf.device)
    own = _logits(hf, ids)
    rows = _Rows()
    with engaged(hf, observers=(rows,)):
        ours = _logits(hf, ids)
    seen = [call.layer for call in rows.calls]
    if sorted(seen) != list(range(layers)):
        raise ProbeError(
            f"{name} is not supported: only {len(set(seen))} of its {layers} layers take their attention from "
            "transformers' AttentionInterface, where probe measures"
        )
    row_error = max(float((row_sum - 1).abs().max()) for row_sum in rows.row_sums)
    logit_error = _difference(ours, own)
    allowed = TOLERANCE[own.dtype]
    if not row_error < max(allowed, 1e-4):
        raise ProbeError(f"{name} is not supported: the sums of its attention rows are off one by {row_error:.2g}")
    if not logit_error <= allowed:
        raise ProbeError(
            f"{name} is not supported: under the engine its logits change by {logit_error:.2g} of the largest"
        )
    middle = rows.calls[layers // 2]
    head = Head(middle.layer, middle.query.shape[1] - 1)
    with engaged(hf, interventions=(PruneHeads([head]),)):
        pruned = _logits(hf, ids)
    zeroed = _zeroed_at_projection(hf, ids, middle, head)
    if not _difference(pruned, zeroed) <= 2 * allowed:
        raise ProbeError(f"{name} is not supported: pruning {head} differs from zeroing its output at the projection")
    if not _difference(pruned, own) > 0:
        raise ProbeError(f"{name} is not supported: pruning {head} does not change the logits")
    calls = sorted(rows.calls, key=lambda call: call.layer)
    return Seam(
        modules=tuple(call.module for call in calls),
        heads=middle.query.shape[1],
        kv_heads=middle.key.shape[1],
        head_dim=middle.query.shape[-1],
        value_dim=middle.value.shape[-1],
        row_error=row_error,
        logit_error=logit_error,
    )


def _logits(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    return hf(input_ids=ids, use_cache=False).logits


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest logit."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _zeroed_at_projection(hf: PreTrainedModel, ids: Tensor, call: AttentionCall, head: Head) -> Tensor:
    """Return the logits with the head's columns zeroed at the input of its attention module's output projection.

    The projection is the last submodule that the attention module runs, whatever its name.
    """
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in call.module.modules()
        if module is not call.module and isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 2
    ]
    with installed(*handles):
        _logits(hf, ids)
    width = call.value.shape[-1]
    columns = slice(head.head * width, (head.head + 1) * width)

    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].clone()
        states[..., columns] = 0
        return (states, *inputs[1:])

    with installed(ran[-1].register_forward_pre_hook(zero)):
        return _logits(hf, ids)
