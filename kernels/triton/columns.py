"""What each key receives: column sums of p in a second sweep over the scores, from the lse of the first.

A program holds a block of keys and streams the queries that may see it. Every bound on i - j (causal, window, band) is
one interval, so only the tiles that its ends cut carry a mask. A query that does not count has an offset of +inf, and a
key that is padding is cleared afterwards: neither costs the loop anything. For each pair the loop does half of
attention's matrix products, one multiply-add, one exponential and one addition.

GPUs since compute capability 9.0 have fewer exponentials for each product than those before, so there some of those for
half-precision inputs are polynomials, as in FlashAttention-4 (Zadouri et al. 2026, section 3.2).
"""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.contract import Band, Mask
from probe.kernels.triton.scores import (
    HIDDEN,
    LOG2E,
    Scoring,
    as_bytes,
    hide_by_position,
    load_rows,
    load_whole,
    padded,
    precision,
    reachable,
    scores,
    upcast,
)
from probe.kernels.triton.tiles import capability_of


@triton.jit
def exp2_polynomial(y):
    """2 ** (127 * (y - 1)) for 0 <= y <= 1, to 1.1e-4 relative, without the exponential unit: any shape.

    Exactly 1 at 1 and 0 at 0. The bounds are the caller's to see to: within [0, 1] a multiply-add does so for nothing.
    """
    # 1.5 * 2 ** 23, so that the low bits of the sum are the exponent rounded to an integer
    shifted = tl.fma(y, 127.0, 12582912.0 - 127.0)
    f = tl.fma(y, 127.0, (12582912.0 - 127.0) - shifted)
    p = 0.05500893 * f + 0.24221096  # minimax on [-0.5, 0.5], exact at 0
    p = p * f + 0.69328293
    p = p * f + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    return (p.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@triton.jit
def split_columns(x, RUN: tl.constexpr):
    """The columns whose index has the bit RUN clear, and those that have it set: [r, c] -> two of [r, c // 2].

    RUN = 8 and 16 are bits that stay within a thread for every layout of a matrix product, so that nothing moves.
    """
    ROWS: tl.constexpr = x.shape[0]
    COLS: tl.constexpr = x.shape[1]
    runs = x.reshape([ROWS, COLS // (2 * RUN), 2, RUN]).permute([0, 1, 3, 2])
    clear, set_ = tl.split(runs)
    return clear.reshape([ROWS, COLS // 2]), set_.reshape([ROWS, COLS // 2])


@triton.jit
def fold(e, FOLDED: tl.constexpr):
    """e [r, c], or [r // 2, c] where FOLDED: row r added to row r + 8, both of which one thread has of a product."""
    if FOLDED:
        ROWS: tl.constexpr = e.shape[0]
        COLS: tl.constexpr = e.shape[1]
        return tl.sum(e.reshape([ROWS // 16, 2, 8, COLS]), 1).reshape([ROWS // 2, COLS])
    else:
        return e


@triton.jit
def add_weights(total, quarter, other, x, unit, offset, QUARTERS: tl.constexpr, FOLDED: tl.constexpr):
    """Adds 2 ** (unit * x - offset) to totals over rows of tiles: x [rows, cols], offset [rows].

    QUARTERS of the columns, of which there may be 0, 1 or 2, are polynomials; then the totals are those of a half and
    two quarters of the columns, and of none but `total` otherwise.
    """
    z = x * unit - offset[:, None]
    if QUARTERS == 0:
        return total + fold(tl.exp2(z), FOLDED), quarter, other
    else:
        y = tl.fma(x, unit * (1 / 127), tl.fma(offset, -1 / 127, 1.0)[:, None])
        y = tl.minimum(tl.maximum(y, 0.0), 1.0)
        z_half, z_rest = split_columns(z, 16)
        _, y_rest = split_columns(y, 16)
        z_quarter, _ = split_columns(z_rest, 8)
        y_quarter, y_other = split_columns(y_rest, 8)
        total += fold(tl.exp2(z_half), FOLDED)
        quarter += fold(exp2_polynomial(y_quarter) if QUARTERS == 2 else tl.exp2(z_quarter), FOLDED)
        other += fold(exp2_polynomial(y_other), FOLDED)
        return total, quarter, other


@triton.jit
def received_kernel(
    query,
    key,
    offset,
    pairs,
    sums,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    pairs_batch,
    pairs_head,
    pairs_row,
    pairs_col,
    queries,
    keys,
    heads,
    group,
    ahead,
    near,
    far,
    first_row,
    last_row,
    slope,
    cap,
    unit,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
    UNROLL: tl.constexpr,
    QUARTERS: tl.constexpr,
    FOLDED: tl.constexpr,
    CAPPED: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums [batch, heads, keys]: over first_row <= i < last_row, near <= i + ahead - j <= far, of 2 ** (s - offset).

    UNROLL tiles of a pass share what a pass costs, and QUARTERS quarters of their columns are polynomials: one of each
    tile, and one more of the first ones.
    """
    blocks = tl.cdiv(keys, COLS)
    which = (tl.program_id(0) // blocks).to(tl.int64)
    first_col = (tl.program_id(0) % blocks) * COLS
    batch = which // heads
    head = which % heads

    row = tl.arange(0, ROWS)
    j = first_col + tl.arange(0, COLS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // group * key_head
    pairs += batch * pairs_batch + head * pairs_head + j[None, :].to(tl.int64) * pairs_col
    offset += which * queries
    sums += which * keys
    k = tl.trans(load_rows(key, key_row, key_dim, j, keys, WIDTH, DIMS, UPCAST))

    # the rows that any of the keys counts, and those that all of them do
    start = tl.maximum(first_row, first_col - ahead + near)
    stop = tl.minimum(last_row, tl.minimum(first_col + COLS, keys) - ahead + far)
    whole_start = tl.maximum(start, first_col + COLS - 1 - ahead + near)
    whole_stop = tl.minimum(stop, first_col - ahead + far + 1)
    tiles = tl.cdiv(tl.maximum(stop - start, 0), ROWS)
    cut = tl.minimum(tl.cdiv(whole_start - start, ROWS), tiles)
    whole = tl.maximum(tl.maximum(whole_stop - start, 0) // ROWS - cut, 0) // UNROLL

    SUMS: tl.constexpr = ROWS // 2 if FOLDED else ROWS
    if QUARTERS > 0:
        total = tl.zeros([SUMS, COLS // 2], tl.float32)
        quarter = tl.zeros([SUMS, COLS // 4], tl.float32)
        other = tl.zeros([SUMS, COLS // 4], tl.float32)
    else:
        total = tl.zeros([SUMS, COLS], tl.float32)
        quarter = 0.0
        other = 0.0

    for t in tl.range(0, whole, num_stages=STAGES):
        for u in tl.static_range(UNROLL):
            at = (start + (cut + t * UNROLL + u) * ROWS).to(tl.int64)
            q = load_whole(query, query_row, query_dim, at, ROWS, WIDTH, DIMS, UPCAST)
            beyond = tl.load(offset + at + row)
            x = scores(q, k, slope, cap, CAPPED, PRECISION)
            if PAIRS:
                shown = tl.load(pairs + (at + row)[:, None] * pairs_row, mask=(j < keys)[None, :], other=0)
                x = tl.where(shown != 0, x, HIDDEN)
            total, quarter, other = add_weights(
                total, quarter, other, x, unit, beyond, (QUARTERS + UNROLL - 1 - u) // UNROLL, FOLDED
            )

    whole *= UNROLL
    for t in tl.range(0, tiles - whole, num_stages=1):
        i = start + tl.where(t < cut, t, t + whole) * ROWS + row
        q = load_rows(query, query_row, query_dim, i, stop, WIDTH, DIMS, UPCAST)
        beyond = tl.load(offset + i, mask=i < stop, other=float("inf"))
        x = scores(q, k, slope, cap, CAPPED, PRECISION)
        x = hide_by_position(x, i + ahead, j, near, far, keys)
        if PAIRS:
            exists = (i < stop)[:, None] & (j < keys)[None, :]
            shown = tl.load(pairs + i[:, None].to(tl.int64) * pairs_row, mask=exists, other=0)
            x = tl.where(shown != 0, x, HIDDEN)
        total, quarter, other = add_weights(total, quarter, other, x, unit, beyond, QUARTERS // UNROLL, FOLDED)

    if QUARTERS > 0:
        c = tl.arange(0, COLS // 2)
        c = first_col + c // 16 * 32 + c % 16
        tl.store(sums + c, tl.sum(total, 0), mask=c < keys)
        c = tl.arange(0, COLS // 4)
        c = first_col + c // 8 * 32 + c % 8 + 16
        tl.store(sums + c, tl.sum(quarter, 0), mask=c < keys)
        tl.store(sums + c + 8, tl.sum(other, 0), mask=c + 8 < keys)
    else:
        tl.store(sums + j, tl.sum(total, 0), mask=j < keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTiles:
    """How `received` is launched: queries and keys of a tile, warps of a program, passes of the loop in flight.

    unroll: tiles of a pass. quarters: how many of the 4 * unroll quarters of their exponentials are polynomials for
    half-precision inputs, 1.1e-4 off at most; 0, or `unroll` up to twice that. folded: whether two rows of a product
    that one thread has, on devices where it does, share a sum: sums take half the registers.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    unroll: int = 1
    quarters: int = 0
    folded: bool = False


def column_tiles(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> ColumnTiles:
    """The tiles for heads of `width`, chosen so that nothing spills; docs/kernels.md has what they compile to."""
    if dtype == torch.float32:
        return ColumnTiles(rows=32, cols=32, warps=4, stages=2)
    if width > 128 or capability < (8, 0):
        return ColumnTiles(rows=64, cols=64, warps=4, stages=2 if capability >= (8, 0) else 1)
    if capability < (9, 0):
        return ColumnTiles(rows=64, cols=128, warps=4, stages=3)
    if capability < (10, 0):
        return ColumnTiles(rows=64, cols=256, warps=8, stages=2, unroll=4, quarters=5, folded=True)
    return ColumnTiles(rows=128, cols=128, warps=8, stages=2, unroll=2, quarters=3)


def received(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    band: Band,
    tiles: ColumnTiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean weight on each key over the queries of a band, [batch, heads, keys] float32, and how many, [batch, keys].

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. NaN where no query counts.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    scoring = Scoring.of(query, key, mask, scale, softcap)
    counted = counted_queries(queries, mask, band, query.device)
    rows = queries_in_band(counted, keys, scoring.ahead, band).expand(batch, -1)
    # +inf takes a query out, for 2 ** (score - inf) is 0
    offset = (lse.float() * LOG2E).masked_fill(~counted[:, None] | lse.isneginf(), math.inf)
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    furthest = queries + keys + abs(scoring.ahead)  # no pair is further apart, and int32 holds it
    near = min(max(scoring.near, band.lo), furthest)
    far = scoring.far if band.hi is None else max(min(scoring.far, band.hi), -furthest)
    first_row = 0 if band.start is None else min(max(band.start - mask.first_query, 0), queries)
    last_row = queries if band.stop is None else min(max(band.stop - mask.first_query, 0), queries)
    sums = torch.empty(batch, heads, keys, dtype=torch.float32, device=query.device)
    tiles = tiles or column_tiles(width, query.dtype, capability_of(query))
    query = reachable(query, tiles.rows)
    received_kernel[(batch * heads * triton.cdiv(keys, tiles.cols),)](
        query,
        key,
        offset,
        pairs,
        sums,
        *query.stride(),
        *key.stride(),
        *pairs_strides,
        queries,
        keys,
        heads,
        heads // key.shape[1],
        scoring.ahead,
        near,
        far,
        first_row,
        last_row,
        scoring.slope,
        scoring.cap,
        scoring.unit,
        WIDTH=width,
        DIMS=padded(width),
        ROWS=tiles.rows,
        COLS=tiles.cols,
        STAGES=tiles.stages,
        UNROLL=tiles.unroll,
        QUARTERS=0 if query.dtype == torch.float32 else tiles.quarters,
        FOLDED=tiles.folded,
        CAPPED=scoring.capped,
        PAIRS=mask.pairs is not None,
        PRECISION=precision(query),
        UPCAST=upcast(query),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if mask.keys is not None:
        sums.masked_fill_(~mask.keys[:, None], 0)
    return sums / rows[:, None], rows
