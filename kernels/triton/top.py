"""The k largest weights of each row, in a second sweep over the scores.

A row keeps a list of the best so far. From each tile the best score that beats the list's worst is taken, again and
again until none does in any row: k times in the first tile, hardly ever in the later ones. The largest weight alone
comes from the first sweep (`rows.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import keys_of_program, open_rows
from probe.kernels.triton.scores import FLOOR, HIDDEN, hide, load_rows, products


@triton.jit
def keep_best(best, best_key, x, j, LISTED: tl.constexpr):
    """Return the lists [rows, LISTED] after the scores x [rows, cols] of keys j; ties go to the lower key."""
    NOWHERE: tl.constexpr = 2147483647
    worst = tl.min(best, 1)
    candidate = tl.max(x, 1)
    # a loop in a branch: Triton would not load the next tiles ahead in a loop that holds another one
    if tl.max((candidate > worst).to(tl.int32), 0) > 0:
        while tl.max((candidate > worst).to(tl.int32), 0) > 0:
            takes = candidate > worst
            place = tl.min(tl.where(x == candidate[:, None], j[None, :], NOWHERE), 1)
            # of equal worst ones the highest key goes; no two keys of a list are equal, empty slots have -1, -2, ..
            last = tl.max(tl.where(best == worst[:, None], best_key, -NOWHERE), 1)
            out = takes[:, None] & (best == worst[:, None]) & (best_key == last[:, None])
            best = tl.where(out, candidate[:, None], best)
            best_key = tl.where(out, place[:, None], best_key)
            x = tl.where(takes[:, None] & (j[None, :] == place[:, None]), HIDDEN, x)
            worst = tl.min(best, 1)
            candidate = tl.max(x, 1)
    return best, best_key


@triton.jit
def top_kernel(
    call,
    after_score,
    after_key,
    out_score,
    out_key,
    form: tl.constexpr,
    tiles: tl.constexpr,
    LISTED: tl.constexpr,
    AFTER: tl.constexpr,
):
    """Write scores and key columns of the LISTED best of each row, in no order: [batch, heads, queries, LISTED].

    Empty slots have a negative column. AFTER: of those alone that come after (after_score, after_key) in the ranking.
    """
    rows = open_rows(call, form, tiles.rows)
    place = (rows.batch * call.heads + rows.head) * call.queries + rows.i
    if AFTER:
        bound = tl.load(after_score + place)
        bound_key = tl.load(after_key + place)
    slot = tl.arange(0, LISTED)
    best = tl.full([tiles.rows, LISTED], FLOOR, tl.float32)
    best_key = tl.zeros([tiles.rows, LISTED], tl.int32) - 1 - slot[None, :]
    start, count, _, _ = keys_of_program(rows.block, call, tiles.rows, tiles.cols)
    for t in tl.range(0, count, num_stages=tiles.stages):
        j = start + t * tiles.cols + tl.arange(0, tiles.cols)
        x = products(rows.q, load_rows(rows.key, call.key, j, call.keys, form), call, form)
        x = hide(x, rows, j, call, form)
        if AFTER:
            later = (x < bound[:, None]) | ((x == bound[:, None]) & (j[None, :] > bound_key[:, None]))
            x = tl.where(later, x, HIDDEN)
        best, best_key = keep_best(best, best_key, x, j, LISTED)
    at = place[:, None] * LISTED + slot[None, :]
    tl.store(out_score + at, best)
    tl.store(out_key + at, best_key)
