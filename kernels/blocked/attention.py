"""Attention and its statistics in torch, block by block of query rows: any device, no compiler, no map.

A block holds whole rows of scores within a budget that stays in a CPU's cache. Each row's softmax, every statistic of
it and its share of the column statistics therefore come from one sweep. The query heads that share a KV head are rows
of one matrix product. Arithmetic is float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from probe.kernels.blocked.tally import Tally
from probe.kernels.blocked.top import CHUNK, top_columns
from probe.kernels.blocks import HIDDEN, may_be_blind
from probe.kernels.contract import Request, Scoring, Statistics
from probe.kernels.maps import pool, tile
from probe.kernels.pooled import tile_maxima
from probe.kernels.sweep import Sweep, as_written

__all__ = ["attend", "pool", "tile"]

EDITS = True


@as_written
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scoring: Scoring,
    sinks: Tensor | None,
    request: Request,
    budget: int | None = None,
) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim] and the statistics that `request` names.

    budget: the most bytes of scores in hand at once.
    """
    sweep = Sweep(query, key, scoring, budget)
    tally = Tally(sweep, value, request)
    batch, heads, queries, _ = query.shape
    # heads side by side in memory, as models want them next
    output = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    lse = query.new_empty(batch, heads, queries, dtype=sweep.dtype)
    outputs, lses = sweep.grouped(output), sweep.grouped(lse)
    sink = None if sinks is None else sweep.grouped(sinks.to(sweep.dtype)[None, :, None])
    blind_rows = bool(scoring.edits) or may_be_blind(query, key, scoring.mask)
    for block in sweep.blocks():
        if block.cols.start == block.cols.stop:
            block.of(outputs, rows=3).zero_()
            block.of(lses, rows=3).fill_(-math.inf)
            tally.skip(block)
            continue
        s = sweep.scores(block)
        p = torch.softmax(s, -1, out=sweep.buffer("weights", *s.shape))
        best = None
        if request.top:
            best = top_columns(s, tile_maxima(s, 0, CHUNK), min(request.top, s.shape[-1]))
            peak, largest = best[0][..., 0], p.gather(-1, best[1][..., :1])[..., 0]
        else:
            peak, largest = s.amax(-1), p.amax(-1)
        spread = largest.log_().neg_()  # lse - peak, for the largest weight is exp(peak - lse)
        total = None
        if sink is not None:
            own, without = block.of(sink), peak + spread
            total = torch.sigmoid(without - own)
            spread = spread + softplus(own - without)
            p.mul_(total[..., None])
        row_lse = peak + spread
        if blind_rows:
            blind = peak <= HIDDEN / 2
            p.masked_fill_(blind[..., None], 0)
            row_lse.masked_fill_(blind, -math.inf)
        block.of(lses, rows=3).copy_(row_lse)
        v = sweep.cols(block, value)
        block.of(outputs, rows=3).copy_(sweep.whole(block, sweep.product(p.flatten(2, 3).flatten(0, 1), v, "outputs")))
        tally.add(block, p, s, v.unflatten(0, p.shape[:2]), best=best, peak=peak, spread=spread, total=total)
    return output, tally.finish(lse, lse.isneginf() if blind_rows else None)
