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

from probe.kernels.contract import Scoring
from probe.kernels.triton.call import Vectors, arguments
from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import (
    HIDDEN,
    head_at,
    hide_by_position,
    hide_pairs_within,
    load_rows,
    offsets,
    products,
)
from probe.kernels.triton.tile import block_of


@triton.jit
def pooled_kernel(
    call,
    lse,
    maxima,
    tall,
    wide,
    down,
    across,
    cols,
    form: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIECE_ROWS: tl.constexpr,
    PIECE_COLS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write maxima [batch, heads, pieces, cols] of p over a piece's rows and a tile's columns; zeros before.

    Tiles have `tall` rows and `wide` columns; `down` pieces of rows make the height of one, `across` pieces of columns
    its width.
    """
    HIGH: tl.constexpr = ROWS // PIECE_ROWS  # pieces in a block
    BROAD: tl.constexpr = COLS // PIECE_COLS
    pieces = tl.cdiv(call.queries, tall) * down
    which, batch, head, first = head_of_program(tl.cdiv(pieces, HIGH), call.heads)
    first *= HIGH
    key = head_at(call.key, batch, head // call.group)

    row = tl.arange(0, ROWS)
    piece = first + row // PIECE_ROWS
    within = piece % down * PIECE_ROWS + row % PIECE_ROWS
    i = piece // down * tall + within
    exists = (within < tall) & (i < call.queries)
    i = tl.where(exists, i, call.queries)
    q = load_rows(head_at(call.query, batch, head), call.query, i, call.queries, form)
    off = offsets(tl.load(lse + which * call.queries + i, mask=exists, other=float("-inf")))

    # the tiles of columns that any of the rows may see
    lowest = tl.min(i, 0) + call.ahead
    highest = tl.max(tl.where(exists, i, -1), 0) + call.ahead
    start = tl.maximum(lowest - call.far, 0) // wide
    stop = tl.cdiv(tl.maximum(tl.minimum(highest - call.near + 1, call.keys), 0), wide)
    best = tl.zeros([HIGH, BROAD], tl.float32)
    col = tl.arange(0, COLS)
    out_row = first + tl.arange(0, HIGH)
    for step in tl.range(start * across // BROAD, tl.cdiv(stop * across, BROAD), num_stages=STAGES):
        col_piece = step * BROAD + col // PIECE_COLS
        beside = col_piece % across * PIECE_COLS + col % PIECE_COLS
        j = col_piece // across * wide + beside
        j = tl.where((beside < wide) & (j < call.keys), j, call.keys)
        k = load_rows(key, call.key, j, call.keys, form)
        x = products(q, k, call, form) * call.unit - off[:, None]
        real = j < call.keys
        if form.KEPT:
            kept = call.kept.at + batch * call.kept.batch
            real &= tl.load(kept + j.to(tl.int64) * call.kept.key, mask=real, other=0) != 0
        x += tl.where(real, 0.0, HIDDEN)[None, :]
        if (lowest - tl.max(tl.where(j < call.keys, j, 0), 0) < call.near) | (highest - tl.min(j, 0) > call.far):
            x = hide_by_position(x, i + call.ahead, j, call)
        if form.PAIRS:
            x = hide_pairs_within(x, head_at(call.pairs, batch, head), i, j, call)
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
    scoring: Scoring,
    block: tuple[int, int] | None = None,
) -> Tensor:
    """Return the max of p over tiles: at most [batch, heads, *shape] float32.

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. block: the rows and columns of
    weights that a program has in hand, powers of two; None for what suits the dtype.
    """
    (batch, heads, queries), keys = query.shape[:3], key.shape[2]
    block = block or block_of(query)
    call, form = arguments(Vectors.of(query), Vectors.of(key), scoring)
    tall, wide = math.ceil(queries / shape[0]), math.ceil(keys / shape[1])
    rows, cols = math.ceil(queries / tall), math.ceil(keys / wide)
    piece = [min(triton.next_power_of_2(size), most) for size, most in zip((tall, wide), block, strict=True)]
    down, across = math.ceil(tall / piece[0]), math.ceil(wide / piece[1])
    maxima = torch.zeros(batch, heads, rows * down, cols, dtype=torch.float32, device=query.device)
    programs = batch * heads * triton.cdiv(rows * down, block[0] // piece[0])
    pooled_kernel[(programs,)](
        call,
        lse.float().contiguous(),
        maxima,
        tall,
        wide,
        down,
        across,
        cols,
        form,
        ROWS=block[0],
        COLS=block[1],
        PIECE_ROWS=piece[0],
        PIECE_COLS=piece[1],
        STAGES=2,
        num_warps=4,
        num_stages=2,
    )
    return maxima if down == 1 else maxima.unflatten(2, (rows, down)).amax(3)
