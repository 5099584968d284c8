"""The weight that each key receives: column sums of p in a second sweep over the scores, from the lse of the first.

A program holds a block of keys and streams the queries that may see it. Every bound on i - j (causal, window, band) is
one interval, so most tiles need no mask: this file is about those, and `edges` about what is left. A query that does
not count has an offset of +inf, and a key that is padding is cleared afterwards: neither costs the loop anything. For
each pair the loop does half of attention's matrix products, one multiply-add, one exponential and one addition.
"""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.contract import Band, Scoring
from probe.kernels.triton.call import LOG2E, Vectors, arguments, reachable
from probe.kernels.triton.edges import edges_kernel, whole_passes
from probe.kernels.triton.exponentials import add_weights
from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import head_at, hide_pairs, load_rows, load_whole, scores
from probe.kernels.triton.tiles import capability_of


@triton.jit
def add_to(sums, j, keys, more):
    """Add `more` to what the keys j have received."""
    tl.store(sums + j, tl.load(sums + j, mask=j < keys, other=0.0) + more, mask=j < keys)


@triton.jit
def received_kernel(call, offset, sums, first_row, last_row, form: tl.constexpr, tiles: tl.constexpr):
    """Add to sums [batch, heads, keys] those of 2 ** (s - offset) over the rows that `whole_passes` gives.

    The tiles of a pass share what a pass costs, and `quarters` quarters of their columns are polynomials: one of each
    tile, and one more of the first ones.
    """
    which, batch, head, block = head_of_program(tl.cdiv(call.keys, tiles.cols), call.heads)
    first_col = block * tiles.cols
    row = tl.arange(0, tiles.rows)
    j = first_col + tl.arange(0, tiles.cols)
    sums += which * call.keys
    k = tl.trans(load_rows(head_at(call.key, batch, head // call.group), call.key, j, call.keys, form))

    passes, stop = whole_passes(first_col, call, first_row, last_row, tiles.cols, tiles.rows * tiles.unroll)
    start = (stop - passes * (tiles.rows * tiles.unroll)).to(tl.int64)
    # pointers that a tile moves on take the loop less than those that it makes from an index
    query = head_at(call.query, batch, head) + start * call.query.row
    offset += which * call.queries + start
    pairs = call.pairs.at
    if form.PAIRS:
        pairs = head_at(call.pairs, batch, head) + start * call.pairs.row
    step = tl.full([], tiles.rows, tl.int64)

    SUMS: tl.constexpr = tiles.rows // 2 if tiles.folded else tiles.rows
    if tiles.quarters > 0:
        total = tl.zeros([SUMS, tiles.cols // 2], tl.float32)
        quarter = tl.zeros([SUMS, tiles.cols // 4], tl.float32)
        other = tl.zeros([SUMS, tiles.cols // 4], tl.float32)
    else:
        total = tl.zeros([SUMS, tiles.cols], tl.float32)
        quarter = 0.0
        other = 0.0
    poison = tl.zeros([tiles.rows], tl.float32)

    for _ in tl.range(0, passes, num_stages=tiles.stages):
        for u in tl.static_range(tiles.unroll):
            q = load_whole(query, call.query, form, tiles.rows)
            beyond = tl.load(offset + row)
            x = scores(q, k, call, form)
            if form.PAIRS:
                x = hide_pairs(x, pairs + row.to(tl.int64) * call.pairs.row, j, call)
                pairs += step * call.pairs.row
            total, quarter, other = add_weights(
                total,
                quarter,
                other,
                x,
                call.unit,
                beyond,
                (tiles.quarters + tiles.unroll - 1 - u) // tiles.unroll,
                tiles.folded,
            )
            if tiles.quarters > 0:  # bounds make a number of what is none
                poison = tl.where(beyond == beyond, poison, beyond)
            query += step * call.query.row
            offset += tiles.rows

    if tiles.quarters > 0:
        c = tl.arange(0, tiles.cols // 2)
        c = first_col + c // 16 * 32 + c % 16
        add_to(sums, c, call.keys, tl.sum(total, 0))
        c = tl.arange(0, tiles.cols // 4)
        c = first_col + c // 8 * 32 + c % 8 + 16
        add_to(sums, c, call.keys, tl.sum(quarter, 0) + tl.sum(poison, 0))
        add_to(sums, c + 8, call.keys, tl.sum(other, 0) + tl.sum(poison, 0))
    else:
        add_to(sums, j, call.keys, tl.sum(total, 0))


class ColumnTiles(NamedTuple):
    """The launch of `received`: queries and keys of a tile, warps of a program, passes of the loop in flight.

    unroll: tiles of a pass. quarters: how many of the 4 * unroll quarters of their exponentials are polynomials for
    half-precision inputs; 0, or `unroll` up to twice that. folded: whether two rows of a product that one thread has,
    on devices where it does, share a sum: sums take half the registers. edge: rows and columns of the tiles that carry
    a mask (`edges`); divides `cols`.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    unroll: int = 1
    quarters: int = 0
    folded: bool = False
    edge: int = 64


def column_tiles(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> ColumnTiles:
    """Return the tiles for heads of `width`, chosen so that nothing spills (docs/kernels.md)."""
    if dtype == torch.float32:
        return ColumnTiles(rows=32, cols=32, warps=4, stages=2, edge=32)
    if width > 128 or capability < (8, 0):
        return ColumnTiles(rows=64, cols=64, warps=4, stages=2 if capability >= (8, 0) else 1)
    if capability < (9, 0):
        return ColumnTiles(rows=64, cols=128, warps=4, stages=3)
    if capability < (10, 0):
        if width > 64:
            return ColumnTiles(rows=64, cols=256, warps=8, stages=2, unroll=2, quarters=2, folded=True)
        return ColumnTiles(rows=64, cols=256, warps=4, stages=2, unroll=4, quarters=5, folded=True)
    return ColumnTiles(rows=128, cols=128, warps=8, stages=2, unroll=2, quarters=3)


def received(
    query: Tensor, key: Tensor, lse: Tensor, *, scoring: Scoring, band: Band, tiles: ColumnTiles | None = None
) -> tuple[Tensor, Tensor]:
    """Return what each key receives, [batch, heads, keys] float32, and the queries of the mean, [batch, keys] int64.

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. NaN where no query counts.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    tiles, mask = tiles or column_tiles(width, query.dtype, capability_of(query)), scoring.mask
    if key.dtype == torch.float32:
        tiles = tiles._replace(quarters=0)
    query = Vectors.of(reachable(query, tiles.rows), fixed=True)
    call, form = arguments(query, Vectors.of(key), scoring)
    counted = counted_queries(queries, mask, band, key.device)
    rows = queries_in_band(counted, keys, call.ahead, band).expand(batch, -1)
    # +inf takes a query out, for 2 ** (score - inf) is 0
    offset = (lse.float() * LOG2E).masked_fill(~counted[:, None] | lse.isneginf(), math.inf)
    furthest = queries + keys + abs(call.ahead)  # no pair is further apart, and int32 holds it
    near = min(max(call.near, band.lo), furthest)
    far = call.far if band.hi is None else max(min(call.far, band.hi), -furthest)
    first_row = 0 if band.start is None else min(max(band.start - mask.first_query, 0), queries)
    last_row = queries if band.stop is None else min(max(band.stop - mask.first_query, 0), queries)
    sums = torch.empty(batch, heads, keys, dtype=torch.float32, device=key.device)
    shared = (call._replace(near=near, far=far), offset, sums, first_row, last_row, form)
    edges_kernel[(batch * heads * triton.cdiv(keys, tiles.edge),)](
        *shared,
        ROWS=tiles.edge,
        COLS=tiles.edge,
        STAGES=min(tiles.stages, 2),
        BLOCK=tiles.cols,
        STEP=tiles.rows * tiles.unroll,
        num_warps=4,
    )
    received_kernel[(batch * heads * triton.cdiv(keys, tiles.cols),)](
        *shared, tiles=tiles, num_warps=tiles.warps, num_stages=tiles.stages
    )
    if mask.keys is not None:
        sums.masked_fill_(~mask.keys[:, None], 0)
    return sums / rows[:, None], rows
