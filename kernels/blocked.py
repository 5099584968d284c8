"""Attention and its statistics in torch, block by block of query rows: any device, no compiler, no map.

A block holds whole rows of scores, as many as fit a budget that stays in a CPU's cache, so each row's softmax, every
statistic of it and its share of the column statistics come from one sweep. The query heads that share a KV head are
rows of one matrix product. All of it is float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from probe.kernels.blocks import HIDDEN, Block, blocks, hide, may_be_blind
from probe.kernels.contract import Mask, Request, Statistics
from probe.kernels.plain import plain_attention
from probe.kernels.tally import PooledMap, Tally

# The most bytes of scores in hand at once; the weights take as many again.
BUDGET = {"cpu": 4 << 20}
DEVICE_BUDGET = 256 << 20


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    request: Request,
    budget: int | None = None,
) -> tuple[Tensor, Statistics]:
    """Output [batch, heads, queries, value_dim] in the query's dtype, and the statistics asked for, in float32.

    Where nothing is asked this is torch's own attention. budget: the most bytes of scores in hand at once.
    """
    if not request and softcap is None and sinks is None:
        return plain_attention(query, key, value, mask=mask, scale=scale), Statistics()
    sweep = _Sweep(query, key, mask=mask, scale=scale, softcap=softcap, budget=budget)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query, key, value, sinks)):
        return _Attention.apply(query, key, value, sinks, sweep, request)
    output, _, statistics = _forward(query, key, value, sinks, sweep, request)
    return output, statistics


@torch.no_grad()
def tile(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    rows: range,
    cols: range,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """The weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float32."""
    batch, heads = query.shape[:2]
    sweep = _Sweep(query, key, mask=mask, scale=scale, softcap=softcap)
    block = Block(slice(0, batch), slice(0, key.shape[1]), slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    return sweep.weights(block, query, key, lse)[..., :: rows.step, :: cols.step].reshape(batch, heads, len(rows), len(cols)).float()


@torch.no_grad()
def pool(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    shape: tuple[int, int],
    mask: Mask,
    scale: float,
    softcap: float | None,
    budget: int | None = None,
) -> Tensor:
    """Max of p over tiles: at most [batch, heads, *shape] float32."""
    sweep = _Sweep(query, key, mask=mask, scale=scale, softcap=softcap, budget=budget)
    lead = (query.shape[0], key.shape[1], sweep.group)
    pooled = PooledMap(lead, query.shape[2], key.shape[2], shape, sweep.dtype, query.device)
    for block in sweep.blocks(query, key):
        pooled.add(block, sweep.weights(block, query, key, lse))
    return pooled.map.flatten(1, 2).float()


class _Sweep:
    """The scores of one call, block by block."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        *,
        mask: Mask,
        scale: float,
        softcap: float | None,
        budget: int | None = None,
    ) -> None:
        self.mask, self.scale, self.softcap = mask, scale, softcap
        self.group = query.shape[1] // key.shape[1]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.budget = budget or BUDGET.get(query.device.type, DEVICE_BUDGET)
        self.buffers: dict[str, Tensor] = {}
        self.device = query.device

    def blocks(self, query: Tensor, key: Tensor) -> Iterator[Block]:
        return blocks(query, key, self.mask, budget=max(1, self.budget // self.dtype.itemsize))

    def rows(self, block: Block, tensor: Tensor) -> Tensor:
        """A block's rows of [batch, heads, queries, width], those of all its query heads in one: [.., rows, width]."""
        part = block.of(tensor.unflatten(1, (-1, self.group)), rows=3).to(self.dtype)
        return part.flatten(2, 3).flatten(0, 1)

    def cols(self, block: Block, tensor: Tensor) -> Tensor:
        """A block's keys or values of [batch, kv_heads, keys, width]: [.., cols, width]."""
        return block.of(tensor, cols=2).to(self.dtype).flatten(0, 1)

    def whole(self, block: Block, part: Tensor) -> Tensor:
        """[.., rows, width] as [batch, kv_heads, group, rows, width] of the block."""
        batch, kv_heads, rows = (cut.stop - cut.start for cut in (block.batch, block.kv_heads, block.rows))
        return part.view(batch, kv_heads, self.group, rows, part.shape[-1])

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that the blocks use one after another: fresh pages cost more than filling them."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(max(size, self.budget // self.dtype.itemsize), dtype=self.dtype, device=self.device)
        return self.buffers[name][:size].view(shape)

    def scores(self, block: Block, query: Tensor, key: Tensor) -> Tensor:
        """Scaled, capped scores, HIDDEN where masked: [batch, kv_heads, group, rows, cols] of the block."""
        cap = self.softcap
        q, k = self.rows(block, query) * (self.scale if cap is None else self.scale / cap), self.cols(block, key)
        s = torch.bmm(q, k.transpose(1, 2), out=self.buffer("scores", (q.shape[0], q.shape[1], k.shape[1])))
        if cap is not None:
            s.tanh_().mul_(cap)
        s = self.whole(block, s)
        hide(s, block, self.mask)
        return s

    def weights(self, block: Block, query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
        """p from the lse [batch, heads, queries] of an earlier sweep: [batch, kv_heads, group, rows, cols]."""
        own = block.of(lse.to(self.dtype).unflatten(1, (-1, self.group)), rows=3)
        own = own.masked_fill(own.isneginf(), math.inf)  # a row that sees nothing has weights 0
        return self.scores(block, query, key).sub_(own[..., None]).exp_()


def _forward(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, sweep: _Sweep, request: Request
) -> tuple[Tensor, Tensor, Statistics]:
    """Output [batch, heads, queries, value_dim], lse [batch, heads, queries] and the statistics."""
    batch, heads, queries, _ = query.shape
    blind_rows = may_be_blind(query, key, sweep.mask)
    tally = Tally(query, key, value, sweep.mask, request, sweep.dtype)
    # heads side by side in memory, as models want them next
    output = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    lse = query.new_empty(batch, heads, queries, dtype=sweep.dtype)
    outputs, lses = output.unflatten(1, (-1, sweep.group)), lse.unflatten(1, (-1, sweep.group))
    sink = None if sinks is None else sinks.to(sweep.dtype).unflatten(0, (-1, sweep.group))[None, :, :, None]
    for block in sweep.blocks(query, key):
        v = sweep.cols(block, value)
        s = sweep.scores(block, query, key)
        p = sweep.buffer("weights", tuple(s.shape))
        if s.shape[-1]:
            torch._softmax(s, -1, False, out=p)
            peak = s.amax(-1)
            spread = p.amax(-1).log_().neg_()  # the largest weight is exp(peak - lse)
        else:
            peak = s.new_full(s.shape[:-1], HIDDEN)
            spread = torch.zeros_like(peak)
        total = None
        if sink is not None:
            own, without = block.of(sink), peak + spread
            total = torch.sigmoid(without - own)
            spread = spread + torch.nn.functional.softplus(own - without)
            p.mul_(total[..., None])
        row_lse = peak + spread
        if blind_rows:
            blind = peak <= HIDDEN / 2
            p.masked_fill_(blind[..., None], 0)
            row_lse.masked_fill_(blind, -math.inf)
        block.of(lses, rows=3).copy_(row_lse)
        block.of(outputs, rows=3).copy_(sweep.whole(block, torch.bmm(p.flatten(0, 1).flatten(1, 2), v)))
        tally.add(block, p, s, v.unflatten(0, p.shape[:2]), peak=peak, spread=spread, total=total)
    return output, lse, tally.finish(lse, lse.isneginf() if blind_rows else None)


class _Attention(torch.autograd.Function):
    """The same with gradients of the output, whose backward computes each block's weights again."""

    @staticmethod
    def forward(ctx, query, key, value, sinks, sweep: _Sweep, request: Request) -> tuple[Tensor, Statistics]:
        output, lse, statistics = _forward(query, key, value, sinks, sweep, request)
        ctx.save_for_backward(query, key, value, sinks, output, lse)
        ctx.sweep = sweep
        return output, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        sweep: _Sweep = ctx.sweep
        d_query, d_key, d_value = (torch.zeros_like(t, dtype=sweep.dtype) for t in (query, key, value))
        d_queries = d_query.unflatten(1, (-1, sweep.group))
        moment = (grad.to(sweep.dtype) * output).sum(-1)  # sum_j p_ij dp_ij
        for block in sweep.blocks(query, key):
            k, v, g = sweep.cols(block, key), sweep.cols(block, value), sweep.rows(block, grad)
            p = sweep.weights(block, query, key, lse).flatten(0, 1).flatten(1, 2)
            block.of(d_value, cols=2).add_(torch.bmm(p.transpose(1, 2), g).view_as(block.of(d_value, cols=2)))
            d_score = torch.bmm(g, v.transpose(1, 2)).sub_(sweep.rows(block, moment[..., None])).mul_(p)
            if sweep.softcap is not None:
                # the slope of the cap is 1 - (s / softcap)^2
                s = sweep.scores(block, query, key).clamp(min=-sweep.softcap).div_(sweep.softcap)
                d_score.mul_(s.square_().neg_().add_(1).view_as(d_score))
            d_score.mul_(sweep.scale)
            block.of(d_queries, rows=3).copy_(sweep.whole(block, torch.bmm(d_score, k)))
            d_key_part = torch.bmm(d_score.transpose(1, 2), sweep.rows(block, query))
            block.of(d_key, cols=2).add_(d_key_part.view_as(block.of(d_key, cols=2)))
        d_sinks = None
        if sinks is not None:
            row = (sinks.to(sweep.dtype)[:, None] - lse.masked_fill(lse.isneginf(), math.inf)).exp()
            d_sinks = -(row * moment).sum((0, 2)).to(sinks.dtype)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None
