"""The exact weights p of a rectangle of an attention map, from q, k and lse."""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.contract import Scoring
from probe.kernels.triton.call import Vectors, arguments
from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import (
    head_at,
    hide_by_position,
    hide_keys,
    hide_pairs_within,
    load_rows,
    offsets,
    products,
)


@triton.jit
def tile_kernel(
    call,
    lse,
    found,
    first_row,
    row_step,
    rows,
    first_col,
    col_step,
    cols,
    form: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Write found [batch, heads, rows, cols]: p of query first_row + r * row_step, key first_col + c * col_step."""
    wide = tl.cdiv(cols, COLS)
    which, batch, head, block = head_of_program(wide * tl.cdiv(rows, ROWS), call.heads)

    # what lies beyond the rectangle is made to lie beyond the map
    r = block // wide * ROWS + tl.arange(0, ROWS)
    c = block % wide * COLS + tl.arange(0, COLS)
    i = tl.where(r < rows, first_row + r * row_step, call.queries)
    j = tl.where(c < cols, first_col + c * col_step, call.keys)
    k = load_rows(head_at(call.key, batch, head // call.group), call.key, j, call.keys, form)
    q = load_rows(head_at(call.query, batch, head), call.query, i, call.queries, form)
    off = offsets(tl.load(lse + which * call.queries + i, mask=i < call.queries, other=float("-inf")))
    x = products(q, k, call, form) * call.unit - off[:, None]
    x = hide_by_position(x, i + call.ahead, j, call)
    if form.KEPT:
        x = hide_keys(x, call.kept.at + batch * call.kept.batch, j, call)
    if form.PAIRS:
        x = hide_pairs_within(x, head_at(call.pairs, batch, head), i, j, call)
    tl.store(
        found + (which * rows + r[:, None]) * cols + c[None, :],
        tl.exp2(x),
        mask=(r < rows)[:, None] & (c < cols)[None, :],
    )


def block_of(query: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a program, so that float32 has registers for them too."""
    return (32, 32) if query.dtype == torch.float32 else (64, 64)


def tile(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    rows: range,
    cols: range,
    scoring: Scoring,
    block: tuple[int, int] | None = None,
) -> Tensor:
    """Return the weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float32.

    lse [batch, heads, queries] as the forward pass returned it, learned sinks included. block: the rows and columns of
    the rectangle that one program computes; None for what suits the dtype.
    """
    batch, heads = query.shape[:2]
    block = block or block_of(query)
    call, form = arguments(Vectors.of(query), Vectors.of(key), scoring)
    found = torch.empty(batch, heads, len(rows), len(cols), dtype=torch.float32, device=query.device)
    programs = batch * heads * triton.cdiv(len(rows), block[0]) * triton.cdiv(len(cols), block[1])
    tile_kernel[(programs,)](
        call,
        lse.float().contiguous(),
        found,
        rows.start,
        rows.step,
        len(rows),
        cols.start,
        cols.step,
        len(cols),
        form,
        ROWS=block[0],
        COLS=block[1],
        num_warps=4,
    )
    return found
