"""Which rows a program has, and which keys they may see.

Row r of a program is query r // pack of head r % pack of the `pack` heads that it has. They share a KV head, so that K
and V are read once for all of them, and one query alone still fills a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of_program(blocks, heads):
    """(batch and head as one number, batch, head, block) of a program, where every head has so many blocks."""
    which = (tl.program_id(0) // blocks).to(tl.int64)
    return which, which // heads, which % heads, tl.program_id(0) % blocks


@triton.jit
def rows_of_program(program, queries, heads, pack, ROWS: tl.constexpr):
    """(batch, first head, block of rows; query and head for each of the ROWS rows).

    Rows beyond the last query are its own again: they come to the same numbers and write them to the same place, which
    takes fewer registers than a mask.
    """
    blocks = tl.cdiv(queries * pack, ROWS)
    packs = heads // pack
    # the last rows of a causal map see the most keys: they go first
    block = blocks - 1 - program % blocks
    which = program // blocks
    row = block * ROWS + tl.arange(0, ROWS)
    first_head = (which % packs) * pack
    i = tl.minimum(row // pack, queries - 1)
    head = (first_head + row % pack).to(tl.int64)
    return (which // packs).to(tl.int64), first_head.to(tl.int64), block, i, head


@triton.jit
def keys_of_program(block, queries, keys, pack, ahead, near, far, ROWS: tl.constexpr, COLS: tl.constexpr):
    """(first column, number of tiles) that hold every key some row may see by position, and the rows' own columns."""
    low = (block * ROWS) // pack + ahead
    high = tl.minimum((block * ROWS + ROWS - 1) // pack, queries - 1) + ahead
    start = tl.maximum(low - far, 0) // COLS * COLS
    stop = tl.minimum(high - near + 1, keys)
    return start, tl.cdiv(tl.maximum(stop - start, 0), COLS), low, high


@triton.jit
def load_queries(
    query,
    batch,
    head,
    i,
    batch_stride,
    head_stride,
    row_stride,
    dim_stride,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The vectors of the rows, with 0 beyond WIDTH: [rows, DIMS]."""
    dim = tl.arange(0, DIMS)
    at = query + batch * batch_stride + head[:, None] * head_stride + i[:, None].to(tl.int64) * row_stride
    q = tl.load(at + dim[None, :] * dim_stride, mask=(dim < WIDTH)[None, :], other=0.0)
    return q.to(tl.float32) if UPCAST else q
