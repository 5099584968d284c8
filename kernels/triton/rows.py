"""What a program knows of its rows while keys pass: online softmax and the running sums of every row statistic.

With peak the largest score so far and e_j = 2 ** (unit * (s_j - peak)), a row keeps mass = sum e_j and sums of e_j
times something. When a tile raises the peak, all of them shrink by the same factor. None of them cancels: entropy is a
moment about the peak, sum e_j * log2 e_j, and distances add positive terms, (query - end of tile) + (end - key).

Of the largest weight only the tile is kept, which costs a row little and a score nothing; `search` finds the key.
"""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.scores import hide, load_rows, products

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def add_tile(
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
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    WINDOWED: tl.constexpr,
    TOP: tl.constexpr,
    SETS: tl.constexpr,
    WIDE: tl.constexpr,
    EDGE: tl.constexpr,
    COLS: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    SETTLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state of the rows after one more tile, from its scores x [rows, cols] and values v [cols, dims].

    own [rows]: the key columns at which the queries stand; `start` the first column of the tile; `reach` the window of
    the windowed distance. EDGE: whether some keys may be hidden, after their query, or nearer to it than `reach`. The
    mass, the moment and the distances are [rows, SLOTS], to be added when all keys have passed.
    """
    highest = tl.max(x, 1)
    new = tl.maximum(peak, highest)
    fall = peak * unit - new * unit
    shrink = tl.exp2(fall)
    slotted = shrink[:, None]
    if ENTROPY:
        moment = (moment + mass * fall[:, None]) * slotted
    mass *= slotted
    if DISTANCE:
        distance *= slotted
        if not EDGE and SLOTS > RUN:
            # past the columns of other slots
            distance += mass * ((COLS - COLS // SLOTS * RUN) // RUN)
    away = 0.0
    if EDGE:
        if WINDOWED:
            windowed *= slotted
        away = (own - start)[:, None].to(tl.float32) - first_columns(COLS, SLOTS, RUN)
    z = tl.fma(x, unit, -(new * unit)[:, None])
    e = tl.exp2(z)
    mass, moment, distance, windowed = tally(
        e,
        z,
        mass,
        moment,
        distance,
        windowed,
        away,
        reach,
        ENTROPY,
        DISTANCE,
        WINDOWED,
        EDGE,
        COLS,
        SLOTS,
        RUN,
        0,
    )
    if TOP:
        higher = highest > peak
        if EDGE:  # these do not come in order: of equal peaks the lower key stays
            higher |= (highest == peak) & (start < top)
        top = tl.where(higher, start, top)
    p = e.to(v.dtype)
    if SETS > 0:
        sums = sums * shrink[:, None]
        if occupied != 0:
            sums = add_members(sums, e, p, word, WIDE, PRECISION)
    if SETTLE and not EDGE:
        shrink = after(shrink, mass, moment, distance, ENTROPY, DISTANCE)
    output = tl.dot(p, v, output * shrink[:, None], input_precision=PRECISION)
    return new, mass, output, moment, distance, windowed, top, sums


@triton.jit
def after(shrink, mass, moment, distance, ENTROPY: tl.constexpr, DISTANCE: tl.constexpr):
    """shrink [rows] as it is, once the sums [rows, SLOTS] are there, none of which has the sign that would change it.

    No product waits for the sums of its tile. Where products run by themselves, as on Blackwell, Triton therefore puts
    the sums off to the next pass of the loop, and until then keeps all weights and their logarithms in registers.
    """
    settled = mass
    if ENTROPY:
        settled -= moment
    if DISTANCE:
        settled += distance
    return tl.where(tl.sum(settled, 1) < 0, 0.0, shrink)


@triton.jit
def first_columns(COLS: tl.constexpr, SLOTS: tl.constexpr, RUN: tl.constexpr):
    """The first column of each slot in a tile of COLS: [1, SLOTS] float32."""
    slot = tl.arange(0, SLOTS)
    return (slot // RUN * (COLS // SLOTS * RUN) + slot % RUN).to(tl.float32)[None, :]


@triton.jit
def tally(
    e,
    z,
    mass,
    moment,
    distance,
    windowed,
    away,
    reach,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    WINDOWED: tl.constexpr,
    EDGE: tl.constexpr,
    COLS: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    PAST: tl.constexpr,
):
    """The sums [rows, SLOTS] with weights e [rows, cols] added, of which z are the logarithms to base 2.

    Where the columns of a slot are in one thread's registers, a sum takes one instruction for each weight. A sum over
    a row takes products, a tree of additions and more between threads.

    Where EDGE, `away` [rows, SLOTS] is the distance from the query to the first column of a slot, and PAST how far
    these columns are past that. Elsewhere `distance` is in units of RUN columns, and from the slot's latest column: as
    a slot goes from one column to the next, all of its mass gets that much further away.
    """
    if COLS == SLOTS or SLOTS == 1:
        past = PAST + tl.arange(0, COLS // SLOTS)[None, :].to(tl.float32)
        if ENTROPY:
            moment = add_product(moment, e, z, SLOTS)
        if EDGE:
            if DISTANCE:
                distance = add_product(distance, e, away - past, SLOTS)
            if WINDOWED:
                windowed = add_product(windowed, e, tl.minimum(away - past, reach), SLOTS)
        elif DISTANCE:
            distance += mass * (COLS // SLOTS)
            if SLOTS == 1:
                distance = add_product(distance, e, COLS - 1 - past, SLOTS)
        mass = add(mass, e, SLOTS)
    else:
        e_one, e_other = halves(e, COLS, SLOTS, RUN)
        z_one, z_other = halves(z, COLS, SLOTS, RUN)
        mass, moment, distance, windowed = tally(
            e_one,
            z_one,
            mass,
            moment,
            distance,
            windowed,
            away,
            reach,
            ENTROPY,
            DISTANCE,
            WINDOWED,
            EDGE,
            COLS // 2,
            SLOTS,
            RUN,
            PAST,
        )
        mass, moment, distance, windowed = tally(
            e_other,
            z_other,
            mass,
            moment,
            distance,
            windowed,
            away,
            reach,
            ENTROPY,
            DISTANCE,
            WINDOWED,
            EDGE,
            COLS // 2,
            SLOTS,
            RUN,
            PAST + COLS // SLOTS * RUN // 2,
        )
    return mass, moment, distance, windowed


@triton.jit
def add(total, terms, SLOTS: tl.constexpr):
    """total [rows, SLOTS] plus terms [rows, cols]: as many columns as slots, or any number for 1 slot."""
    return total + tl.sum(terms, 1)[:, None] if SLOTS == 1 else total + terms


@triton.jit
def add_product(total, e, weight, SLOTS: tl.constexpr):
    """total [rows, SLOTS] plus e * weight [rows, cols], columns as in `add`."""
    return total + tl.sum(e * weight, 1)[:, None] if SLOTS == 1 else tl.fma(e, weight, total)


@triton.jit
def halves(x, COLS: tl.constexpr, SLOTS: tl.constexpr, RUN: tl.constexpr):
    """The first half of the columns of every slot, and the second: [rows, COLS] -> two of [rows, COLS // 2]."""
    ROWS: tl.constexpr = x.shape[0]
    SPAN: tl.constexpr = COLS // SLOTS * RUN
    one, other = tl.split(x.reshape([ROWS, COLS // SPAN, 2, SPAN // 2]).permute([0, 1, 3, 2]))
    return one.reshape([ROWS, COLS // 2]), other.reshape([ROWS, COLS // 2])


@triton.jit
def add_members(sums, e, p, word, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """Adds the weights e [rows, cols] of the keys in each set to sums [rows, WIDE]; bit s of a key's word is set s.

    A matrix product with the members takes fewer instructions than one set's sum. p is e as the product takes it.
    """
    member = ((word[:, None] >> tl.arange(0, WIDE)[None, :]) & 1).to(p.dtype)
    sums = tl.dot(p, member, sums, input_precision=PRECISION)
    if p.dtype != tl.float32:
        # what rounding to half precision took away, itself rounded
        sums = tl.dot((e - p.to(tl.float32)).to(p.dtype), member, sums, input_precision=PRECISION)
    return sums


@triton.jit
def search(
    q,
    key,
    kept,
    pairs_row,
    tile,
    own,
    keys,
    near,
    far,
    key_stride,
    key_dim,
    kept_stride,
    pairs_stride,
    slope,
    cap,
    WIDTH: tl.constexpr,
    DIMS: tl.constexpr,
    COLS: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The first key column of each row's largest score in the tile that starts at `tile`: [rows] -> [rows].

    -1 for a row without one. Rows tend to share a few tiles; each is visited once.
    """
    NONE: tl.constexpr = 2147483647
    found = tl.zeros_like(tile) - 1
    left = tl.where(tile >= 0, tile, NONE)
    start = tl.min(left, 0)
    while start < NONE:
        j = start + tl.arange(0, COLS)
        k = load_rows(key, key_stride, key_dim, j, keys, WIDTH, DIMS, UPCAST)
        x = products(q, k, slope, cap, CAPPED, PRECISION)
        x = hide(x, own, j, near, far, keys, kept, kept_stride, pairs_row, pairs_stride, KEPT, PAIRS)
        first = tl.min(tl.where(x == tl.max(x, 1)[:, None], j[None, :], NONE), 1)
        found = tl.where(left == start, first, found)
        left = tl.where(left == start, NONE, left)
        start = tl.min(left, 0)
    return found


@triton.jit
def top_weight_of(peak, unit, share):
    """The weight at the peak: there the exponent in `add_tile` is not 0, but what rounding peak * unit took away."""
    return share * tl.exp2(tl.fma(peak, unit, -(peak * unit)))


@triton.jit
def close_rows(peak, mass, sink, unit, SINKS: tl.constexpr):
    """A row's (peak to base 2, log2 of the sum of weights relative to it, what to multiply sums by).

    sink [rows]: learned logits to base 2. A row that saw nothing has mass 0 and multiplies by 0; one that met a score
    that is no number has no mass either, but it is no number.
    """
    peak = peak * unit
    seen = mass != 0
    if SINKS:
        larger = tl.maximum(peak, sink)
        own = tl.exp2(peak - larger)
        total = mass * own + tl.exp2(sink - larger)
        share = tl.where(seen, own / total, 0.0)
        spread = (larger - peak) + tl.log2(total)
    else:
        share = tl.where(seen, 1 / tl.where(seen, mass, 1.0), 0.0)
        spread = tl.log2(tl.where(seen, mass, 1.0))
    return peak, spread, share


@triton.jit
def entropy_of(moment, mass, spread, share):
    """-sum p log p in nats: sum p (lse - s), with lse and s both relative to the peak."""
    return LN2 * share * (mass * spread - moment)
