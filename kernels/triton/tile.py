"""The exact weights p of a rectangle of an attention map, from q, k and lse."""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.contract import Mask
from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.rows import LN2
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


@triton.jit
def offsets(lse):
    """What to subtract from scores to base 2: lse in that base, and +inf, so that p is 0, for rows that see nothing."""
    return tl.where(lse == float("-inf"), float("inf"), lse * (1 / LN2))


@triton.jit
def tile_kernel(
    query,
    key,
    lse,
    kept,
    pairs,
    found,
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
    first_row,
    row_step,
    rows,
    first_col,
    col_step,
    cols,
    slope,
    cap,
    unit,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """found [batch, heads, rows, cols]: p of query first_row + r * row_step and key first_col + c * col_step."""
    wide = tl.cdiv(cols, COLS)
    blocks = wide * tl.cdiv(rows, ROWS)
    which, batch, head, block = head_of_program(blocks, heads)

    # what lies beyond the rectangle is made to lie beyond the map
    r = block // wide * ROWS + tl.arange(0, ROWS)
    c = block % wide * COLS + tl.arange(0, COLS)
    i = tl.where(r < rows, first_row + r * row_step, queries)
    j = tl.where(c < cols, first_col + c * col_step, keys)
    k = load_rows(key + batch * key_batch + head // group * key_head, key_row, key_dim, j, keys, WIDTH, DIMS, UPCAST)
    q = load_rows(
        query + batch * query_batch + head * query_head, query_row, query_dim, i, queries, WIDTH, DIMS, UPCAST
    )
    off = offsets(tl.load(lse + which * queries + i, mask=i < queries, other=float("-inf")))
    x = products(q, k, slope, cap, CAPPED, PRECISION) * unit - off[:, None]
    x = hide_by_position(x, i + ahead, j, near, far, keys)
    if KEPT:
        byte = tl.load(kept + batch * kept_batch + j.to(tl.int64) * kept_key, mask=j < keys, other=0)
        x = tl.where((byte != 0)[None, :], x, HIDDEN)
    if PAIRS:
        at = pairs + batch * pairs_batch + head * pairs_head
        at += i[:, None].to(tl.int64) * pairs_row + j[None, :].to(tl.int64) * pairs_col
        byte = tl.load(at, mask=(i < queries)[:, None] & (j < keys)[None, :], other=0)
        x = tl.where(byte != 0, x, HIDDEN)
    tl.store(
        found + (which * rows + r[:, None]) * cols + c[None, :],
        tl.exp2(x),
        mask=(r < rows)[:, None] & (c < cols)[None, :],
    )


def block_of(query: Tensor) -> tuple[int, int]:
    """Rows and columns of a program, so that float32 has registers for them too."""
    return (32, 32) if query.dtype == torch.float32 else (64, 64)


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
    block: tuple[int, int] | None = None,
) -> Tensor:
    """The weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float32.

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. block: the rows and columns of
    the rectangle that one program computes; None for what suits the dtype.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    block = block or block_of(query)
    scoring = Scoring.of(query, key, mask, scale, softcap)
    kept, kept_strides = as_bytes(mask.keys, query, (batch, keys))
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    found = torch.empty(batch, heads, len(rows), len(cols), dtype=torch.float32, device=query.device)
    programs = batch * heads * triton.cdiv(len(rows), block[0]) * triton.cdiv(len(cols), block[1])
    tile_kernel[(programs,)](
        query,
        key,
        lse.float().contiguous(),
        kept,
        pairs,
        found,
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
        rows.start,
        rows.step,
        len(rows),
        cols.start,
        cols.step,
        len(cols),
        scoring.slope,
        scoring.cap,
        scoring.unit,
        WIDTH=width,
        DIMS=padded(width),
        ROWS=block[0],
        COLS=block[1],
        CAPPED=scoring.capped,
        KEPT=mask.keys is not None,
        PAIRS=mask.pairs is not None,
        PRECISION=precision(query),
        UPCAST=upcast(query),
        num_warps=4,
    )
    return found
