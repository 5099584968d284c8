"""Attention with every row statistic in one pass over the keys.

A program holds some rows and streams the keys that any of them may see: first the tiles of which every row sees every
key, which carry no mask, then the tiles at the ends. With SPLIT several programs share the keys of the same rows, and
leave the running sums for `decode.py` to put together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import keys_of_program, open_rows, rows_of_program
from probe.kernels.triton.rows import (
    State,
    Sums,
    add_tile,
    close_rows,
    entropy_of,
    first_columns,
    search,
    top_weight_of,
)
from probe.kernels.triton.scores import FLOOR, LN2, head_at, hide, hide_keys, load_rows, load_whole, products


@triton.jit
def visit(
    state,
    rows,
    start,
    call,
    form,
    value,
    value_at,
    words,
    flags,
    reach,
    asked,
    tiles,
    COLS: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Return the state of the rows after the tile of COLS keys from `start`."""
    j = start + tl.arange(0, COLS)
    if EDGE:
        k = load_rows(rows.key, call.key, j, call.keys, form)
        v = load_rows(value_at, value, j, call.keys, form)
    else:
        k = load_whole(rows.key + start.to(tl.int64) * call.key.row, call.key, form, COLS)
        v = load_whole(value_at + start.to(tl.int64) * value.row, value, form, COLS)
    x = products(rows.q, k, call, form)
    if EDGE:
        x = hide(x, rows, j, call, form)
    elif form.KEPT:
        x = hide_keys(x, rows.kept, j, call)
    word = 0
    occupied = 0
    if asked.SETS > 0:
        word = tl.load(words + j, mask=j < call.keys, other=0)
        occupied = tl.load(flags + start // tiles.cols)
    return add_tile(state, x, v, rows.own, start, word, occupied, call.unit, reach, asked, tiles, form, COLS, EDGE)


@triton.jit
def forward_kernel(
    call,
    value,
    words,
    flags,
    sinks,
    out,
    out_split,
    outs,
    batches,
    first_key,
    reach,
    form: tl.constexpr,
    asked: tl.constexpr,
    tiles: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Write the output and the statistics of the rows of a program.

    With SPLIT, `out`, `outs.lse`, `outs.top_weight` and the others take the running sums instead: the output not yet
    divided, the peak, the mass, and so on, of the part of the keys that program_id(1) says.
    """
    rows = open_rows(call, form, tiles.rows)
    value_at = head_at(value, rows.batch, rows.first_head // call.group)
    if asked.SETS > 0:
        words_at = head_at(words, rows.batch, rows.first_head)
        flags_at = head_at(flags, rows.batch, rows.first_head)
    else:
        words_at = None
        flags_at = None

    start, count, own_low, own_high = keys_of_program(rows.block, call, tiles.rows, tiles.cols)
    if SPLIT:
        share = tl.cdiv(count, tl.num_programs(1))
        mine = tl.minimum(share * tl.program_id(1), count)
        start += mine * tiles.cols
        count = tl.minimum(share, count - mine)
    # tiles at either end, of which some row may not see some key
    before = 0
    if form.SLIDING:
        before = tl.minimum(tl.cdiv(tl.maximum(own_high - call.far - start, 0), tiles.cols), count)
    whole = 0
    if not form.PAIRS:
        all_see = tl.minimum(own_low - call.near + 1, call.keys)
        if asked.WINDOWED:
            all_see = tl.minimum(all_see, own_low - reach + 1)
        whole = tl.minimum(tl.maximum(all_see - start, 0) // tiles.cols, count)
        whole = tl.maximum(whole - before, 0)

    PARTS: tl.constexpr = tiles.cols // tiles.edge
    none = tl.zeros([tiles.rows, tiles.slots], tl.float32)
    state = State(
        tl.full([tiles.rows], FLOOR, tl.float32),
        tl.zeros([tiles.rows, value.DIMS], tl.float32),
        tl.full([tiles.rows], -1, tl.int32),
        tl.zeros([tiles.rows, asked.WIDE], tl.float32),
        Sums(none, none, none, none),
    )
    far_away = reach * 1.0  # Triton makes a constant of an integer that is 1, and a constant has no .to()
    for edge in tl.static_range(2):
        if edge or not form.PAIRS:
            for t in tl.range(0, (count - whole) * PARTS if edge else whole, num_stages=1 if edge else tiles.stages):
                if edge:
                    at = tl.where(t < before * PARTS, t, t + whole * PARTS) * tiles.edge
                else:
                    at = (before + t) * tiles.cols
                state = visit(
                    state,
                    rows,
                    start + at,
                    call,
                    form,
                    value,
                    value_at,
                    words_at,
                    flags_at,
                    far_away,
                    asked,
                    tiles,
                    tiles.edge if edge else tiles.cols,
                    edge == 1,
                )

            if not edge:
                # every key so far is further away than `reach`, and counted to the last column of its slot
                mass, moment, distance, windowed = state.sums
                if asked.WINDOWED:
                    windowed = mass * far_away
                if asked.DISTANCE:
                    away = (rows.own - start - (before + whole - 1) * tiles.cols)[:, None].to(tl.float32)
                    away -= first_columns(tiles.cols, tiles) + (tiles.cols // tiles.slots * tiles.run - tiles.run)
                    distance = tl.fma(mass, away, distance * tiles.run)
                sums = Sums(mass, moment, distance, windowed)
                state = State(state.peak, state.output, state.top, state.members, sums)

    peak, output, top, members, sums = state
    mass = tl.sum(sums.mass, 1)
    moment = tl.sum(sums.moment, 1)
    distance = tl.sum(sums.distance, 1)
    windowed = tl.sum(sums.windowed, 1)
    # the same once more, lest they take registers while keys pass: that the third index is 0 no compiler knows
    batch, _, _, i, head = rows_of_program(tl.program_id(0) + tl.program_id(2), call, tiles.rows)
    place = (batch * call.heads + head) * call.queries + i
    value_dim = tl.arange(0, value.DIMS)
    out_at = out.at + batch * out.batch + head * out.head + i.to(tl.int64) * out.row
    whole_row = (value_dim < value.WIDTH)[None, :]
    if SPLIT:
        part = tl.program_id(1).to(tl.int64)
        place += part * batches * call.heads * call.queries
        out_at += part * out_split
        tl.store(out_at[:, None] + value_dim[None, :], output, mask=whole_row)
        tl.store(outs.lse + place, peak)
        tl.store(outs.top_weight + place, mass)
        if asked.ENTROPY:
            tl.store(outs.entropy + place, moment)
    else:
        nan = float("nan")
        sink = mass
        if asked.SINKS:
            sink = tl.load(sinks + head) * (1 / LN2)
        log_peak, spread, share = close_rows(peak, mass, sink, call.unit, asked.SINKS)
        seen = mass != 0
        output = output * share[:, None]
        tl.store(out_at[:, None] + value_dim[None, :], output.to(out.at.dtype.element_ty), mask=whole_row)
        if asked.LSE:
            tl.store(outs.lse + place, tl.where(seen, LN2 * (log_peak + spread), float("-inf")))
        if asked.ENTROPY:
            tl.store(outs.entropy + place, tl.where(seen, entropy_of(moment, mass, spread, share), nan))
        if asked.TOP:
            tl.store(outs.top_weight + place, top_weight_of(peak, call.unit, share))
        distance = tl.where(seen, distance * share, nan)
        windowed = tl.where(seen, windowed * share, nan)
        members = tl.where(seen[:, None], members * share[:, None], nan)
    if asked.DISTANCE:
        tl.store(outs.distance + place, distance)
    if asked.WINDOWED:
        tl.store(outs.windowed_distance + place, windowed)
    if asked.SETS > 0:
        set_at = tl.arange(0, asked.WIDE)
        sets = (set_at < asked.SETS)[None, :]
        tl.store(outs.mass + place[:, None] * asked.SETS + set_at[None, :], members, mask=sets)
    if asked.TOP:
        column = search(rows, top, call, form, tiles.cols)
        found = tl.where(column < 0, -1, column.to(tl.int64) + first_key)
        tl.store(outs.top_key + place, found)
