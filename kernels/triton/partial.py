"""Sums of p v over each key set, from the lse of an earlier sweep; only tiles that hold keys of the set are read."""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import keys_of_program, load_queries, rows_of_program
from probe.kernels.triton.rows import LN2
from probe.kernels.triton.scores import HIDDEN, hide, load_rows, products


@triton.jit
def partial_kernel(
    query,
    key,
    value,
    lse,
    kept,
    pairs,
    words,
    order,
    before,
    out,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    value_batch,
    value_head,
    value_row,
    value_dim,
    kept_batch,
    kept_key,
    pairs_batch,
    pairs_head,
    pairs_row,
    pairs_key,
    words_batch,
    words_head,
    order_batch,
    order_head,
    before_batch,
    before_head,
    set_tiles,
    heads,
    group,
    pack,
    queries,
    keys,
    ahead,
    near,
    far,
    slope,
    cap,
    unit,
    SETS: tl.constexpr,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out[batch, head, i, s, :] = sum over the keys j of set s = program_id(1) of p_ij v_j."""
    which = tl.program_id(1)
    batch, first_head, block, i, head = rows_of_program(tl.program_id(0), queries, heads, pack, ROWS)
    own = i + ahead
    q = load_queries(query, batch, head, i, query_batch, query_head, query_row, query_dim, WIDTH, DIMS, UPCAST)
    key += batch * key_batch + first_head // group * key_head
    value += batch * value_batch + first_head // group * value_head
    kept += batch * kept_batch
    pairs_at = pairs + batch * pairs_batch + head * pairs_head + i.to(tl.int64) * pairs_row
    words += batch * words_batch + first_head * words_head
    order += batch * order_batch + first_head * order_head + which * set_tiles
    before += batch * before_batch + first_head * before_head + which * (set_tiles + 1)
    place = (batch * heads + head) * queries + i
    offset = tl.load(lse + place) * (1 / LN2)
    # a row that sees nothing weighs nothing
    offset = tl.where(offset == float("-inf"), float("inf"), offset)
    output = tl.zeros([ROWS, VALUE_DIMS], tl.float32)
    start, tiles, _, _ = keys_of_program(block, queries, keys, pack, ahead, near, far, ROWS, COLS)
    first = tl.load(before + start // COLS)
    last = tl.load(before + start // COLS + tiles)
    for t in tl.range(first, last, num_stages=STAGES):
        at = tl.load(order + t) * COLS
        j = at + tl.arange(0, COLS)
        k = load_rows(key, key_row, key_dim, j, keys, WIDTH, DIMS, UPCAST)
        v = load_rows(value, value_row, value_dim, j, keys, VALUE_WIDTH, VALUE_DIMS, UPCAST)
        x = products(q, k, slope, cap, CAPPED, PRECISION)
        x = hide(x, own, j, near, far, keys, kept, kept_key, pairs_at, pairs_key, KEPT, PAIRS)
        member = (tl.load(words + j, mask=j < keys, other=0) >> which) & 1
        p = tl.exp2(tl.where((member != 0)[None, :], x, HIDDEN) * unit - offset[:, None])
        output = tl.dot(p.to(v.dtype), v, output, input_precision=PRECISION)
    value_at = tl.arange(0, VALUE_DIMS)
    at = (place[:, None] * SETS + which) * VALUE_WIDTH + value_at[None, :]
    tl.store(out + at, output, mask=(value_at < VALUE_WIDTH)[None, :])
