"""Sums of p v over each key set, from the lse of an earlier sweep; only tiles that hold keys of the set are read."""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import keys_of_program, open_rows
from probe.kernels.triton.scores import HIDDEN, head_at, hide, load_rows, offsets, products


@triton.jit
def partial_kernel(
    call, value, lse, words, order, before, out, set_tiles, form: tl.constexpr, SETS: tl.constexpr, tiles: tl.constexpr
):
    """Write out[batch, head, i, s, :] = sum over the keys j of set s = program_id(1) of p_ij v_j."""
    which = tl.program_id(1)
    rows = open_rows(call, form, tiles.rows)
    value_at = head_at(value, rows.batch, rows.first_head // call.group)
    words_at = head_at(words, rows.batch, rows.first_head)
    order_at = head_at(order, rows.batch, rows.first_head) + which * set_tiles
    before_at = head_at(before, rows.batch, rows.first_head) + which * (set_tiles + 1)
    place = (rows.batch * call.heads + rows.head) * call.queries + rows.i
    offset = offsets(tl.load(lse + place))
    output = tl.zeros([tiles.rows, value.DIMS], tl.float32)
    start, count, _, _ = keys_of_program(rows.block, call, tiles.rows, tiles.cols)
    first = tl.load(before_at + start // tiles.cols)
    last = tl.load(before_at + start // tiles.cols + count)
    for t in tl.range(first, last, num_stages=tiles.stages):
        at = tl.load(order_at + t) * tiles.cols
        j = at + tl.arange(0, tiles.cols)
        k = load_rows(rows.key, call.key, j, call.keys, form)
        v = load_rows(value_at, value, j, call.keys, form)
        x = hide(products(rows.q, k, call, form), rows, j, call, form)
        member = (tl.load(words_at + j, mask=j < call.keys, other=0) >> which) & 1
        p = tl.exp2(tl.where((member != 0)[None, :], x, HIDDEN) * call.unit - offset[:, None])
        output = tl.dot(p.to(v.dtype), v, output, input_precision=form.PRECISION)
    value_dim = tl.arange(0, value.DIMS)
    at = (place[:, None] * SETS + which) * value.WIDTH + value_dim[None, :]
    tl.store(out + at, output, mask=(value_dim < value.WIDTH)[None, :])
