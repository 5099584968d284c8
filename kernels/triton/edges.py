"""What each key receives from the rows near both ends of what it may see, where tiles carry a mask.

A block of keys is swept in two parts. The rows that all of its keys count are cut into whole passes, which need no mask
(`whole_passes`, and `columns` for the sweep). What is left before and after them is here, in tiles so small that masks
take few registers: the two sweeps share no register, and so neither is held to the tiles of the other.
"""

# What a launch passes for a constexpr, and what a kernel loops over, pyright does not understand.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import head_of_program
from probe.kernels.triton.scores import HIDDEN, hide_pairs, load_rows, scores


@triton.jit
def whole_passes(first_col, ahead, near, far, first_row, last_row, COLS: tl.constexpr, STEP: tl.constexpr):
    """(number, end) of the passes of STEP rows that each of the COLS keys from first_col on counts.

    They end with the last row that counts: a causal map then has edges at one end only.
    """
    start = tl.maximum(first_row, first_col + COLS - 1 - ahead + near)
    stop = tl.minimum(last_row, first_col - ahead + far + 1)
    return tl.maximum(stop - start, 0) // STEP, stop


@triton.jit
def edges_kernel(
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
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    CAPPED: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums [batch, heads, keys]: of 2 ** (s - offset) over the rows in no pass of STEP rows of a BLOCK of keys.

    Rows are first_row <= i < last_row with near <= i + ahead - j <= far.
    """
    which, batch, head, block = head_of_program(tl.cdiv(keys, COLS), heads)
    first_col = block * COLS
    j = first_col + tl.arange(0, COLS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // group * key_head
    pairs += batch * pairs_batch + head * pairs_head
    offset += which * queries
    k = tl.trans(load_rows(key, key_row, key_dim, j, keys, WIDTH, DIMS, UPCAST))

    # the rows that any of the keys counts, less those of whole passes
    start = tl.maximum(first_row, first_col - ahead + near)
    stop = tl.minimum(last_row, tl.minimum(first_col + COLS, keys) - ahead + far)
    passes, resume = whole_passes(first_col // BLOCK * BLOCK, ahead, near, far, first_row, last_row, BLOCK, STEP)
    resume = tl.maximum(resume, start)
    first = resume - passes * STEP
    before = tl.cdiv(first - start, ROWS)
    after = tl.cdiv(tl.maximum(stop - resume, 0), ROWS)

    total = tl.zeros([ROWS, COLS], tl.float32)
    for t in tl.range(0, before + after, num_stages=STAGES):
        i = tl.where(t < before, start + t * ROWS, resume + (t - before) * ROWS) + tl.arange(0, ROWS)
        end = tl.where(t < before, first, stop)
        q = load_rows(query, query_row, query_dim, i, end, WIDTH, DIMS, UPCAST)
        beyond = tl.load(offset + i, mask=i < end, other=float("inf"))
        x = scores(q, k, slope, cap, CAPPED, PRECISION)
        # Bounds for each row rather than the distance of each pair (`hide_by_position`): a fifth fewer instructions.
        # What keys beyond the last receive is not stored, but without that bound the compiler makes more of the rest.
        low = i + ahead - far
        high = tl.minimum(i + ahead - near, keys - 1)
        x = tl.where((low[:, None] <= j[None, :]) & (j[None, :] <= high[:, None]), x, HIDDEN)
        if PAIRS:
            x = hide_pairs(x, pairs + tl.minimum(i, end - 1).to(tl.int64) * pairs_row, pairs_col, j, keys)
        total += tl.exp2(x * unit - beyond[:, None])

    tl.store(sums + which * keys + j, tl.sum(total, 0), mask=j < keys)
