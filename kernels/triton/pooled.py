"""The largest weight of every tile of an attention map, from q, k and lse.

A program holds some rows of queries and streams all keys that they may see. Tiles may have any size: their rows and
columns are laid out in pieces of a power of two, padded with what lies beyond the map, so that a block of weights is
made of whole pieces. A tile taller than a program is cut into rows of pieces, whose maxima are taken at the
end; a wider one is carried from block to block. Nothing is written twice, so no order of programs matters.
"""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.contract import Mask
from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import (
    HIDDEN,
    Scoring,
    as_bytes,
    hide_by_position,
    load_rows,
    padded,
    precision,
    products,
    upcast,
)
from probe.kernels.triton.tile import block_of, offsets


@triton.jit
def pooled_kernel(
    query,
    key,
    lse,
    kept,
    pairs,
    maxima,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    kept_batch,
    kept_key,
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
    tall,
    wide,
    down,
    across,
    cols,
    slope,
    cap,
    unit,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIECE_ROWS: tl.constexpr,
    PIECE_COLS: tl.constexpr,
    STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """maxima [batch, heads, pieces, cols] of p, zeros before, over the rows of a piece and the columns of a tile.

    Tiles have `tall` rows and `wide` columns; `down` pieces of rows make the height of one, `across` pieces of columns
    its width.
    """
    HIGH: tl.constexpr = ROWS // PIECE_ROWS  # pieces in a block
    BROAD: tl.constexpr = COLS // PIECE_COLS
    pieces = tl.cdiv(queries, tall) * down
    which, batch, head, first = head_of_program(tl.cdiv(pieces, HIGH), heads)
    first *= HIGH
    key += batch * key_batch + head // group * key_head
    kept += batch * kept_batch
    pairs += batch * pairs_batch + head * pairs_head

    row = tl.arange(0, ROWS)
    piece = first + row // PIECE_ROWS
    within = piece % down * PIECE_ROWS + row % PIECE_ROWS
    i = piece // down * tall + within
    exists = (within < tall) & (i < queries)
    i = tl.where(exists, i, queries)
    q = load_rows(
        query + batch * query_batch + head * query_head, query_row, query_dim, i, queries, WIDTH, DIMS, UPCAST
    )
    off = offsets(tl.load(lse + which * queries + i, mask=exists, other=float("-inf")))

    # the tiles of columns that any of the rows may see
    lowest = tl.min(i, 0) + ahead
    highest = tl.max(tl.where(exists, i, -1), 0) + ahead
    start = tl.maximum(lowest - far, 0) // wide
    stop = tl.cdiv(tl.maximum(tl.minimum(highest - near + 1, keys), 0), wide)
    best = tl.zeros([HIGH, BROAD], tl.float32)
    col = tl.arange(0, COLS)
    out_row = first + tl.arange(0, HIGH)
    for step in tl.range(start * across // BROAD, tl.cdiv(stop * across, BROAD), num_stages=STAGES):
        col_piece = step * BROAD + col // PIECE_COLS
        beside = col_piece % across * PIECE_COLS + col % PIECE_COLS
        j = col_piece // across * wide + beside
        j = tl.where((beside < wide) & (j < keys), j, keys)
        k = load_rows(key, key_row, key_dim, j, keys, WIDTH, DIMS, UPCAST)
        x = products(q, k, slope, cap, CAPPED, PRECISION) * unit - off[:, None]
        real = j < keys
        if KEPT:
            real &= tl.load(kept + j.to(tl.int64) * kept_key, mask=real, other=0) != 0
        x += tl.where(real, 0.0, HIDDEN)[None, :]
        if (lowest - tl.max(tl.where(j < keys, j, 0), 0) < near) | (highest - tl.min(j, 0) > far):
            x = hide_by_position(x, i + ahead, j, near, far, keys)
        if PAIRS:
            at = pairs + i[:, None].to(tl.int64) * pairs_row + j[None, :].to(tl.int64) * pairs_col
            byte = tl.load(at, mask=exists[:, None] & (j < keys)[None, :], other=0)
            x = tl.where(byte != 0, x, HIDDEN)
        # the largest weight is that of the largest score to base 2 less its row's: one exponential for each piece
        block = tl.max(tl.max(x.reshape([HIGH, PIECE_ROWS, BROAD, PIECE_COLS]), 3), 1)
        # `across` is more than 1 only where a block is one piece wide
        best = tl.where(step % across == 0, block, tl.maximum(best, block))
        out_col = (step * BROAD + tl.arange(0, BROAD)) // across
        written = tl.where((step + 1) % across == 0, cols, 0)
        at = maxima + (which * pieces + out_row[:, None]) * cols + out_col[None, :]
        tl.store(at, tl.exp2(best), mask=(out_row < pieces)[:, None] & (out_col < written)[None, :])


def pool(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    shape: tuple[int, int],
    mask: Mask,
    scale: float,
    softcap: float | None,
    block: tuple[int, int] | None = None,
) -> Tensor:
    """Max of p over tiles of ceil(queries / shape[0]) x ceil(keys / shape[1]): at most [batch, heads, *shape] float32.

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. block: the rows and columns of
    weights that a program has in hand, powers of two; None for what suits the dtype.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    block = block or block_of(query)
    scoring = Scoring.of(query, key, mask, scale, softcap)
    tall, wide = math.ceil(queries / shape[0]), math.ceil(keys / shape[1])
    rows, cols = math.ceil(queries / tall), math.ceil(keys / wide)
    piece = [min(triton.next_power_of_2(size), most) for size, most in zip((tall, wide), block, strict=True)]
    down, across = math.ceil(tall / piece[0]), math.ceil(wide / piece[1])
    kept, kept_strides = as_bytes(mask.keys, query, (batch, keys))
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    maxima = torch.zeros(batch, heads, rows * down, cols, dtype=torch.float32, device=query.device)
    programs = batch * heads * triton.cdiv(rows * down, block[0] // piece[0])
    pooled_kernel[(programs,)](
        query,
        key,
        lse.float().contiguous(),
        kept,
        pairs,
        maxima,
        *query.stride(),
        *key.stride(),
        *kept_strides,
        *pairs_strides,
        queries,
        keys,
        heads,
        heads // key.shape[1],
        scoring.ahead,
        scoring.near,
        scoring.far,
        tall,
        wide,
        down,
        across,
        cols,
        scoring.slope,
        scoring.cap,
        scoring.unit,
        WIDTH=width,
        DIMS=padded(width),
        ROWS=block[0],
        COLS=block[1],
        PIECE_ROWS=piece[0],
        PIECE_COLS=piece[1],
        STAGES=2,
        CAPPED=scoring.capped,
        KEPT=mask.keys is not None,
        PAIRS=mask.pairs is not None,
        PRECISION=precision(query),
        UPCAST=upcast(query),
        num_warps=4,
        num_stages=2,
    )
    return maxima if down == 1 else maxima.unflatten(2, (rows, down)).amax(3)
