"""Gradients of attention's output, for every implementation that computes only forwards.

The backward pass computes each block's weights again from the output and `lse` that the forward pass left, so it stores
no more than torch's own attention does. Statistics carry no gradient, and say so to whoever asks for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from probe.kernels.contract import Request, Scoring, Statistics
from probe.kernels.sweep import Sweep, as_written

Forward = Callable[[Request], tuple[Tensor, Statistics]]


def without_gradient(statistics: Statistics, *inputs: Tensor | None) -> Statistics:
    """Return the same numbers, which raise RuntimeError when they are differentiated."""
    leaves = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    marked = {}
    for field in fields(Statistics):
        found = getattr(statistics, field.name)
        if found is not None and found.is_floating_point():
            marked[field.name] = _Constant.apply(field.name, found, *leaves)
    return replace(statistics, **marked)


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, statistic: Tensor, *_: Tensor) -> Tensor:
        ctx.name = name
        return statistic.view_as(statistic)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.name}: statistics of attention carry no gradient; take .detach() of it, or differentiate the output"
        )


class Attention(torch.autograd.Function):
    """The results of `forward(request)`, with gradients of the output for the inputs: query, key, value, sinks."""

    @staticmethod
    def forward(
        ctx: Any, forward: Forward, scoring: Scoring, request: Request, *inputs: Tensor | None
    ) -> tuple[Tensor, Statistics]:
        output, statistics = forward(replace(request, lse=True))
        ctx.save_for_backward(*inputs, output, statistics.lse)
        ctx.scoring = scoring
        return output, statistics if request.lse else replace(statistics, lse=None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return None, None, None, *gradients(grad, ctx.scoring, *ctx.saved_tensors)


@as_written
def gradients(
    grad: Tensor,
    scoring: Scoring,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    output: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of query, key, value and sinks from that of the output."""
    sweep, cap = Sweep(query, key, scoring), scoring.softcap
    lse = lse.to(sweep.dtype)
    d_query, d_key, d_value = (torch.zeros_like(t, dtype=sweep.dtype) for t in (query, key, value))
    moment = (grad.to(sweep.dtype) * output).sum(-1)  # sum_j p_ij dp_ij
    for block in sweep.blocks():
        if block.cols.start == block.cols.stop:
            continue
        q, g = sweep.rows(block, query), sweep.rows(block, grad)
        k, v = sweep.cols(block, key), sweep.cols(block, value)
        s = sweep.capped(block)
        slope = None if cap is None else (s / cap).square_().neg_().add_(1)
        p = sweep.weights(block, sweep.edited(s, block), lse).flatten(2, 3).flatten(0, 1)
        d_score = torch.bmm(g, v.transpose(1, 2)).sub_(sweep.rows(block, moment[..., None])).mul_(p)
        if slope is not None:
            d_score.mul_(slope.view_as(d_score))
        d_score.mul_(scoring.scale)
        for edit in scoring.edits:
            edit.forget(sweep.whole(block, d_score), block)
        block.of(sweep.grouped(d_query), rows=3).copy_(sweep.whole(block, torch.bmm(d_score, k)))
        for target, part in (
            (d_key, torch.bmm(d_score.transpose(1, 2), q)),
            (d_value, torch.bmm(p.transpose(1, 2), g)),
        ):
            place = block.of(target, cols=2)
            place += part.view_as(place)
    d_sinks = None
    if sinks is not None:
        weight = (sinks.to(sweep.dtype)[:, None] - lse.masked_fill(lse.isneginf(), math.inf)).exp()
        d_sinks = -(weight * moment).sum((0, 2)).to(sinks.dtype)
    return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_sinks
