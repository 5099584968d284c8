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
    PRECISION: tl.constexpr,
):
    """The state of the rows after one more tile, from its scores x [rows, cols] and values v [cols, dims].

    own [rows]: the key columns at which the queries stand; `start` the first column of the tile; `reach` the window of
    the windowed distance. EDGE: whether some keys may be hidden, after their query, or nearer to it than `reach`.
    """
    col = tl.arange(0, COLS)
    highest = tl.max(x, 1)
    new = tl.maximum(peak, highest)
    z = tl.fma(x, unit, -(new * unit)[:, None])
    fall = peak * unit - new * unit
    e = tl.exp2(z)
    shrink = tl.exp2(fall)
    here = tl.sum(e, 1)
    if ENTROPY:
        moment = (moment + mass * fall) * shrink + tl.sum(e * z, 1)
    mass = mass * shrink + here
    if EDGE:
        if DISTANCE or WINDOWED:
            away = (own - start).to(tl.float32)[:, None] - col.to(tl.float32)[None, :]
            if DISTANCE:
                distance = distance * shrink + tl.sum(e * away, 1)
            if WINDOWED:
                windowed = windowed * shrink + tl.sum(e * tl.minimum(away, reach), 1)
    else:
        if DISTANCE:
            left = (COLS - 1 - col).to(tl.float32)
            beyond = (own - (start + COLS - 1)).to(tl.float32)
            distance = distance * shrink + (beyond * here + tl.sum(e * left[None, :], 1))
        if WINDOWED:
            windowed = windowed * shrink + here * reach
    if TOP:
        # tiles need not come in order: of equal peaks the lower key stays
        top = tl.where((highest > peak) | ((highest == peak) & (start < top)), start, top)
    p = e.to(v.dtype)
    if SETS > 0:
        sums = sums * shrink[:, None]
        if occupied != 0:
            sums = add_members(sums, e, p, word, SETS, WIDE, PRECISION)
    output = tl.dot(p, v, output * shrink[:, None], input_precision=PRECISION)
    return new, mass, output, moment, distance, windowed, top, sums


@triton.jit
def add_members(sums, e, p, word, SETS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """Adds the weights e [rows, cols] of the keys in each set to sums [rows, sets]; bit s of a key's word is set s."""
    bit = tl.arange(0, WIDE)
    if WIDE < 16:
        for s in tl.static_range(SETS):
            part = tl.sum(e * ((word >> s) & 1).to(tl.float32)[None, :], 1)
            sums += tl.where((bit == s)[None, :], part[:, None], 0.0)
    else:
        member = ((word[:, None] >> bit[None, :]) & 1).to(p.dtype)
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
