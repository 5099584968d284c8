"""Attention with every row statistic in one pass over the keys.

A program holds some rows and streams the keys that any of them may see: first the tiles of which every row sees every
key, which carry no mask, then the tiles at the ends. With SPLIT several programs share the keys of the same rows, and
leave the running sums for `decode.py` to put together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.programs import keys_of_program, load_queries, rows_of_program
from probe.kernels.triton.rows import LN2, add_tile, close_rows, entropy_of, first_columns, search, top_weight_of
from probe.kernels.triton.scores import FLOOR, hide, hide_keys, load_rows, load_whole, products


@triton.jit
def visit(
    peak,
    mass,
    output,
    moment,
    distance,
    windowed,
    top,
    sums,
    q,
    key,
    value,
    kept,
    pairs_row,
    words,
    flags,
    own,
    start,
    keys,
    near,
    far,
    key_stride,
    key_dim,
    value_stride,
    value_dim,
    kept_stride,
    pairs_stride,
    slope,
    cap,
    unit,
    reach,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    COLS: tl.constexpr,
    FLAGGED: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    SETTLE: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    WINDOWED: tl.constexpr,
    TOP: tl.constexpr,
    SETS: tl.constexpr,
    WIDE: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The state of the rows after the tile of keys from `start`."""
    j = start + tl.arange(0, COLS)
    if EDGE:
        k = load_rows(key, key_stride, key_dim, j, keys, WIDTH, DIMS, UPCAST)
        v = load_rows(value, value_stride, value_dim, j, keys, VALUE_WIDTH, VALUE_DIMS, UPCAST)
    else:
        k = load_whole(key + start.to(tl.int64) * key_stride, key_stride, key_dim, COLS, WIDTH, DIMS, UPCAST)
        value += start.to(tl.int64) * value_stride
        v = load_whole(value, value_stride, value_dim, COLS, VALUE_WIDTH, VALUE_DIMS, UPCAST)
    x = products(q, k, slope, cap, CAPPED, PRECISION)
    if EDGE:
        x = hide(x, own, j, near, far, keys, kept, kept_stride, pairs_row, pairs_stride, KEPT, PAIRS)
    elif KEPT:
        x = hide_keys(x, kept, kept_stride, j, keys)
    word = 0
    occupied = 0
    if SETS > 0:
        word = tl.load(words + j, mask=j < keys, other=0)
        occupied = tl.load(flags + start // FLAGGED)
    return add_tile(
        peak,
        mass,
        output,
        moment,
        distance,
        windowed,
        top,
        sums,
        x,
        v,
        own,
        start,
        word,
        occupied,
        unit,
        reach,
        ENTROPY,
        DISTANCE,
        WINDOWED,
        TOP,
        SETS,
        WIDE,
        EDGE,
        COLS,
        SLOTS,
        RUN,
        SETTLE,
        PRECISION,
    )


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    kept,
    pairs,
    words,
    flags,
    sinks,
    out,
    out_lse,
    out_entropy,
    out_distance,
    out_windowed,
    out_top_weight,
    out_top_key,
    out_mass,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row: tl.constexpr,
    key_dim,
    value_batch,
    value_head,
    value_row: tl.constexpr,
    value_dim,
    kept_batch,
    kept_key,
    pairs_batch,
    pairs_head,
    pairs_row,
    pairs_key,
    words_batch,
    words_head,
    flags_batch,
    flags_head,
    out_split,
    out_batch,
    out_head,
    out_row,
    batches,
    heads,
    group,
    pack,
    queries,
    keys,
    ahead,
    near,
    far,
    first_key,
    slope,
    cap,
    unit,
    reach,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    EDGE_COLS: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    SETTLE: tl.constexpr,
    STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
    SLIDING: tl.constexpr,
    ALIKE: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    SINKS: tl.constexpr,
    LSE: tl.constexpr,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    WINDOWED: tl.constexpr,
    TOP: tl.constexpr,
    SETS: tl.constexpr,
    WIDE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Output and statistics of the rows of a program.

    With SPLIT, `out`, `out_lse`, `out_top_weight` and the others take the running sums instead: the output not yet
    divided, the peak, the mass, and so on, of the part of the keys that program_id(1) says.
    """
    batch, first_head, block, i, head = rows_of_program(tl.program_id(0), queries, heads, pack, ROWS)
    if ALIKE:  # one set of offsets takes fewer registers than two
        value_row = key_row
        value_dim = key_dim
    kv_head = first_head // group
    own = i + ahead
    q = load_queries(query, batch, head, i, query_batch, query_head, query_row, query_dim, WIDTH, DIMS, UPCAST)
    key += batch * key_batch + kv_head * key_head
    value += batch * value_batch + kv_head * value_head
    kept += batch * kept_batch
    pairs_at = pairs + batch * pairs_batch + head * pairs_head + i.to(tl.int64) * pairs_row
    words += batch * words_batch + first_head * words_head
    flags += batch * flags_batch + first_head * flags_head

    start, tiles, own_low, own_high = keys_of_program(block, queries, keys, pack, ahead, near, far, ROWS, COLS)
    if SPLIT:
        share = tl.cdiv(tiles, tl.num_programs(1))
        mine = tl.minimum(share * tl.program_id(1), tiles)
        start += mine * COLS
        tiles = tl.minimum(share, tiles - mine)
    # tiles at either end, of which some row may not see some key
    before = 0
    if SLIDING:
        before = tl.minimum(tl.cdiv(tl.maximum(own_high - far - start, 0), COLS), tiles)
    whole = 0
    if not PAIRS:
        all_see = tl.minimum(own_low - near + 1, keys)
        if WINDOWED:
            all_see = tl.minimum(all_see, own_low - reach + 1)
        whole = tl.minimum(tl.maximum(all_see - start, 0) // COLS, tiles)
        whole = tl.maximum(whole - before, 0)

    PARTS: tl.constexpr = COLS // EDGE_COLS
    peak = tl.full([ROWS], FLOOR, tl.float32)
    mass = tl.zeros([ROWS, SLOTS], tl.float32)
    output = tl.zeros([ROWS, VALUE_DIMS], tl.float32)
    moment = mass
    distance = mass
    windowed = mass
    top = tl.full([ROWS], -1, tl.int32)
    sums = tl.zeros([ROWS, WIDE], tl.float32)

    far_away = reach * 1.0  # Triton makes a constant of an integer that is 1, and a constant has no .to()
    for edge in tl.static_range(2):
        if edge or not PAIRS:
            for t in tl.range(0, (tiles - whole) * PARTS if edge else whole, num_stages=1 if edge else STAGES):
                if edge:  # noqa: SIM108
                    at = tl.where(t < before * PARTS, t, t + whole * PARTS) * EDGE_COLS
                else:
                    at = (before + t) * COLS
                peak, mass, output, moment, distance, windowed, top, sums = visit(
                    peak,
                    mass,
                    output,
                    moment,
                    distance,
                    windowed,
                    top,
                    sums,
                    q,
                    key,
                    value,
                    kept,
                    pairs_at,
                    words,
                    flags,
                    own,
                    start + at,
                    keys,
                    near,
                    far,
                    key_row,
                    key_dim,
                    value_row,
                    value_dim,
                    kept_key,
                    pairs_key,
                    slope,
                    cap,
                    unit,
                    far_away,
                    WIDTH,
                    DIMS,
                    VALUE_WIDTH,
                    VALUE_DIMS,
                    EDGE_COLS if edge else COLS,
                    COLS,
                    SLOTS,
                    RUN,
                    SETTLE,
                    CAPPED,
                    KEPT,
                    PAIRS,
                    ENTROPY,
                    DISTANCE,
                    WINDOWED,
                    TOP,
                    SETS,
                    WIDE,
                    edge == 1,
                    PRECISION,
                    UPCAST,
                )

            if not edge:
                # every key so far is further away than `reach`, and counted to the last column of its slot
                if WINDOWED:
                    windowed = mass * far_away
                if DISTANCE:
                    away = (own - start - (before + whole - 1) * COLS)[:, None].to(tl.float32)
                    away -= first_columns(COLS, SLOTS, RUN) + (COLS // SLOTS * RUN - RUN)
                    distance = tl.fma(mass, away, distance * RUN)

    mass = tl.sum(mass, 1)
    moment = tl.sum(moment, 1)
    distance = tl.sum(distance, 1)
    windowed = tl.sum(windowed, 1)
    # the same once more, lest they take registers while keys pass: that the third index is 0 no compiler knows
    program = tl.program_id(0) + tl.program_id(2)
    batch, _, _, i, head = rows_of_program(program, queries, heads, pack, ROWS)
    place = (batch * heads + head) * queries + i
    value_at = tl.arange(0, VALUE_DIMS)
    out_at = out + batch * out_batch + head * out_head + i.to(tl.int64) * out_row
    whole_row = (value_at < VALUE_WIDTH)[None, :]
    set_at = tl.arange(0, WIDE)
    if SPLIT:
        part = tl.program_id(1).to(tl.int64)
        place += part * batches * heads * queries
        out_at += part * out_split
        tl.store(out_at[:, None] + value_at[None, :], output, mask=whole_row)
        tl.store(out_lse + place, peak)
        tl.store(out_top_weight + place, mass)
        if ENTROPY:
            tl.store(out_entropy + place, moment)
    else:
        nan = float("nan")
        sink = mass
        if SINKS:
            sink = tl.load(sinks + head) * (1 / LN2)
        log_peak, spread, share = close_rows(peak, mass, sink, unit, SINKS)
        seen = mass != 0
        output = output * share[:, None]
        tl.store(out_at[:, None] + value_at[None, :], output.to(out.dtype.element_ty), mask=whole_row)
        if LSE:
            tl.store(out_lse + place, tl.where(seen, LN2 * (log_peak + spread), float("-inf")))
        if ENTROPY:
            tl.store(out_entropy + place, tl.where(seen, entropy_of(moment, mass, spread, share), nan))
        if TOP:
            tl.store(out_top_weight + place, top_weight_of(peak, unit, share))
        distance = tl.where(seen, distance * share, nan)
        windowed = tl.where(seen, windowed * share, nan)
        sums = tl.where(seen[:, None], sums * share[:, None], nan)
    if DISTANCE:
        tl.store(out_distance + place, distance)
    if WINDOWED:
        tl.store(out_windowed + place, windowed)
    if SETS > 0:
        sets = (set_at < SETS)[None, :]
        tl.store(out_mass + place[:, None] * SETS + set_at[None, :], sums, mask=sets)
    if TOP:
        column = search(
            q,
            key,
            kept,
            pairs_at,
            top,
            own,
            keys,
            near,
            far,
            key_row,
            key_dim,
            kept_key,
            pairs_key,
            slope,
            cap,
            WIDTH,
            DIMS,
            COLS,
            CAPPED,
            KEPT,
            PAIRS,
            PRECISION,
            UPCAST,
        )
        found = tl.where(column < 0, -1, column.to(tl.int64) + first_key)
        tl.store(out_top_key + place, found)
