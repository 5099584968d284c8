"""The seam check: proof, on a short prompt, that the engine sees and steers the attention the model really uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.engine.attention import engaged
from probe.errors import ProbeError
from probe.heads import Head
from probe.interventions.base import AttentionCall
from probe.interventions.prune import PruneHeads
from probe.kernels.contract import Request, Statistics

# Rounding allowed between two attention kernels, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Seam:
    """What the check learnt: the attention module of each layer, heads and sizes, and the largest deviations it saw."""

    modules: tuple[nn.Module, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    row_error: float
    logit_error: float


class _Rows:
    """Observer that keeps the shapes, the row sums and the output projection's share of each call."""

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
    """Run `ids` [1, tokens] a few times and compare; raises ProbeError, naming the architecture, where the seam leaks.

    Checked: every layer's attention comes through the engine once; rows sum to one; logits equal the model's own;
    pruning a head in the engine equals zeroing its columns at the output projection; and it moves the logits.
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
            f"{name} is not supported: {len(set(seen))} of its {layers} layers take their attention from transformers' "
            f"AttentionInterface"
        )
    row_error = max(float((row_sum - 1).abs().max()) for row_sum in rows.row_sums)
    logit_error = _difference(ours, own)
    allowed = TOLERANCE[own.dtype]
    if not row_error < max(allowed, 1e-4):
        raise ProbeError(f"{name} is not supported: its attention rows are off one by {row_error:.2g}")
    if not logit_error <= allowed:
        raise ProbeError(f"{name} is not supported: its logits change by {logit_error:.2g} of the largest")
    middle = rows.calls[layers // 2]
    head = Head(middle.layer, middle.query.shape[1] - 1)
    with engaged(hf, interventions=(PruneHeads([head]),)):
        pruned = _logits(hf, ids)
    zeroed = _zeroed_at_projection(hf, ids, middle, head)
    if not _difference(pruned, zeroed) <= 2 * allowed:
        raise ProbeError(f"{name} is not supported: pruning {head} differs from zeroing its output")
    if not _difference(pruned, own) > 0:
        raise ProbeError(f"{name} is not supported: pruning {head} does not reach the logits")
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
    """Largest absolute difference, relative to the largest logit."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _zeroed_at_projection(hf: PreTrainedModel, ids: Tensor, call: AttentionCall, head: Head) -> Tensor:
    """Logits with the head's columns zeroed at the input of its attention module's output projection.

    The projection is the last submodule that the attention module runs, whatever its name.
    """
    ran: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in call.module.modules()
        if module is not call.module and isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 2
    ]
    try:
        _logits(hf, ids)
    finally:
        for handle in handles:
            handle.remove()
    width = call.value.shape[-1]
    columns = slice(head.head * width, (head.head + 1) * width)

    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].clone()
        states[..., columns] = 0
        return (states, *inputs[1:])

    handle = ran[-1].register_forward_pre_hook(zero)
    try:
        return _logits(hf, ids)
    finally:
        handle.remove()
