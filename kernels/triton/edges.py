"""The weight that each key receives from the rows near both ends of what it may see, where tiles carry a mask.

A block of keys is swept in two parts. The rows that all of its keys count are cut into whole passes, which need no mask
(`whole_passes`, and `columns` for the sweep). The rows before and after them are here, in tiles so small that masks
take few registers: the two sweeps share no register, and so neither is held to the tiles of the other.
"""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import HIDDEN, head_at, hide_pairs, load_rows, scores


@triton.jit
def whole_passes(first_col, call, first_row, last_row, COLS: tl.constexpr, STEP: tl.constexpr):
    """Return (number, end) of the passes of STEP rows that each of the COLS keys from first_col on counts.

    They end with the last row that counts: a causal map then has edges at one end only.
    """
    start = tl.maximum(first_row, first_col + COLS - 1 - call.ahead + call.near)
    stop = tl.minimum(last_row, first_col - call.ahead + call.far + 1)
    return tl.maximum(stop - start, 0) // STEP, stop


@triton.jit
def edges_kernel(
    call,
    offset,
    sums,
    first_row,
    last_row,
    form: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write sums [batch, heads, keys]: of 2 ** (s - offset) over the rows in no pass of STEP rows of a BLOCK.

    Rows are first_row <= i < last_row with near <= i + ahead - j <= far.
    """
    which, batch, head, block = head_of_program(tl.cdiv(call.keys, COLS), call.heads)
    first_col = block * COLS
    j = first_col + tl.arange(0, COLS)
    query = head_at(call.query, batch, head)
    offset += which * call.queries
    k = tl.trans(load_rows(head_at(call.key, batch, head // call.group), call.key, j, call.keys, form))

    # the rows that any of the keys counts, less those of whole passes
    start = tl.maximum(first_row, first_col - call.ahead + call.near)
    stop = tl.minimum(last_row, tl.minimum(first_col + COLS, call.keys) - call.ahead + call.far)
    passes, resume = whole_passes(first_col // BLOCK * BLOCK, call, first_row, last_row, BLOCK, STEP)
    resume = tl.maximum(resume, start)
    first = resume - passes * STEP
    before = tl.cdiv(first - start, ROWS)
    after = tl.cdiv(tl.maximum(stop - resume, 0), ROWS)

    total = tl.zeros([ROWS, COLS], tl.float32)
    for t in tl.range(0, before + after, num_stages=STAGES):
        i = tl.where(t < before, start + t * ROWS, resume + (t - before) * ROWS) + tl.arange(0, ROWS)
        end = tl.where(t < before, first, stop)
        q = load_rows(query, call.query, i, end, form)
        beyond = tl.load(offset + i, mask=i < end, other=float("inf"))
        x = scores(q, k, call, form)
        # Bounds for each row rather than the distance of each pair (`hide_by_position`): a fifth fewer instructions.
        # What keys beyond the last receive is not stored, but without that bound the compiler makes more of the rest.
        low = i + call.ahead - call.far
        high = tl.minimum(i + call.ahead - call.near, call.keys - 1)
        x = tl.where((low[:, None] <= j[None, :]) & (j[None, :] <= high[:, None]), x, HIDDEN)
        if form.PAIRS:
            row = tl.minimum(i, end - 1).to(tl.int64) * call.pairs.row
            x = hide_pairs(x, head_at(call.pairs, batch, head) + row, j, call)
        total += tl.exp2(x * call.unit - beyond[:, None])

    tl.store(sums + which * call.keys + j, tl.sum(total, 0), mask=j < call.keys)
