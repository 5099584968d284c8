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
    PRECISION: tl.constexpr,
):
    """The state of the rows after one more tile, from its scores x [rows, cols] and values v [cols, dims].

    own [rows]: the key columns at which the queries stand; `start` the first column of the tile; `reach` the window of
    the windowed distance. EDGE: whether some keys may be hidden, after their query, or nearer to it than `reach`. The
    mass, the moment and the distances are [rows, SLOTS], to be added when all keys have passed.
    """
    col = tl.arange(0, COLS)
    highest = tl.max(x, 1)
    new = tl.maximum(peak, highest)
    z = tl.fma(x, unit, -(new * unit)[:, None])
    fall = peak * unit - new * unit
    e = tl.exp2(z)
    shrink = tl.exp2(fall)
    slotted = shrink[:, None]
    if ENTROPY:
        moment = add_weighted((moment + mass * fall[:, None]) * slotted, e, z, COLS, SLOTS, RUN)
    here = add_all(tl.zeros_like(mass), e, COLS, SLOTS, RUN)
    mass = mass * slotted + here
    if EDGE:
        if DISTANCE or WINDOWED:
            away = (own - start).to(tl.float32)[:, None] - col.to(tl.float32)[None, :]
            if DISTANCE:
                distance = add_weighted(distance * slotted, e, away, COLS, SLOTS, RUN)
            if WINDOWED:
                windowed = add_weighted(windowed * slotted, e, tl.minimum(away, reach), COLS, SLOTS, RUN)
    elif DISTANCE:
        # from the query to the end of the tile, to where a slot's last column stands, to the column
        span: tl.constexpr = COLS * RUN // SLOTS
        slot = tl.arange(0, SLOTS)
        last = (slot // RUN + 1) * span - RUN + slot % RUN
        beyond = (own - start)[:, None] - last[None, :]
        left = (span - RUN - col % span // RUN * RUN).to(tl.float32)[None, :] + tl.zeros_like(e)
        distance = add_weighted(tl.fma(beyond.to(tl.float32), here, distance * slotted), e, left, COLS, SLOTS, RUN)
    if TOP:
        # tiles need not come in order: of equal peaks the lower key stays
        top = tl.where((highest > peak) | ((highest == peak) & (start < top)), start, top)
    p = e.to(v.dtype)
    if SETS > 0:
        sums = sums * shrink[:, None]
        if occupied != 0:
            sums = add_members(sums, e, p, word, WIDE, PRECISION)
    output = tl.dot(p, v, output * shrink[:, None], input_precision=PRECISION)
    return new, mass, output, moment, distance, windowed, top, sums


@triton.jit
def add_weighted(total, e, weight, COLS: tl.constexpr, SLOTS: tl.constexpr, RUN: tl.constexpr):
    """total [rows, SLOTS] plus e * weight [rows, COLS], each column in one of the slots.

    Where SLOTS and RUN are chosen so that the columns of a slot are in one thread's registers, this takes one
    multiply-add for each; a sum over rows would take products, a tree of additions and more between threads.
    """
    if SLOTS == 1:
        return total + tl.sum(e * weight, 1)[:, None]
    elif COLS == SLOTS:
        return tl.fma(e, weight, total)
    else:
        e_one, e_other = halves(e, COLS, RUN)
        weight_one, weight_other = halves(weight, COLS, RUN)
        total = add_weighted(total, e_one, weight_one, COLS // 2, SLOTS, RUN)
        return add_weighted(total, e_other, weight_other, COLS // 2, SLOTS, RUN)


@triton.jit
def add_all(total, e, COLS: tl.constexpr, SLOTS: tl.constexpr, RUN: tl.constexpr):
    """total [rows, SLOTS] plus e [rows, COLS], each column in the same slot as in `add_weighted`."""
    if SLOTS == 1:
        return total + tl.sum(e, 1)[:, None]
    elif COLS == SLOTS:
        return total + e
    else:
        one, other = halves(e, COLS, RUN)
        return add_all(add_all(total, one, COLS // 2, SLOTS, RUN), other, COLS // 2, SLOTS, RUN)


@triton.jit
def halves(x, COLS: tl.constexpr, RUN: tl.constexpr):
    """Every other RUN of columns, and those between: [rows, COLS] -> two of [rows, COLS // 2]."""
    ROWS: tl.constexpr = x.shape[0]
    one, other = tl.split(x.reshape([ROWS, COLS // (2 * RUN), 2, RUN]).permute([0, 1, 3, 2]))
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
    inside,
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
    left = tl.where(inside & (tile >= 0), tile, NONE)
    start = tl.min(left, 0)
    while start < NONE:
        j = start + tl.arange(0, COLS)
        k = load_rows(key, key_stride, key_dim, j, keys, WIDTH, DIMS, UPCAST)
        x = products(q, k, slope, cap, CAPPED, PRECISION)
        x = hide(x, own, inside, j, near, far, keys, kept, kept_stride, pairs_row, pairs_stride, KEPT, PAIRS)
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
