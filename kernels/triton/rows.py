"""The state of a program's rows while keys pass: online softmax and the running sums of every row statistic.

With peak the largest score so far and e_j = 2 ** (unit * (s_j - peak)), a row keeps mass = sum e_j and sums of e_j
times something. When a tile raises the peak, all of them shrink by the same factor. None of them cancels: entropy is a
moment about the peak, sum e_j * log2 e_j, and distances add positive terms, (query - end of tile) + (end - key).

Of the largest weight only the tile is kept, which costs a row little and a score nothing; `search` finds the key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from probe.kernels.triton.scores import LN2, hide, load_rows, products


class Asked(NamedTuple):
    """The statistics that a kernel is compiled for. SETS: how many key sets; WIDE: the power of two that tiles have."""

    SINKS: bool
    LSE: bool
    ENTROPY: bool
    DISTANCE: bool
    WINDOWED: bool
    TOP: bool
    SETS: int
    WIDE: int


class Sums(NamedTuple):
    """Sums [rows, SLOTS] of e times something, to be added over the slots when all keys have passed."""

    mass: Any
    moment: Any
    distance: Any
    windowed: Any


class State(NamedTuple):
    """The state of a program's rows. top [rows]: the first column of the tile that holds the peak, -1 for none.

    members: sums of e over each key set, [rows, WIDE].
    """

    peak: Any
    output: Any
    top: Any
    members: Any
    sums: Any


@triton.jit
def add_tile(
    state, x, v, own, start, word, occupied, unit, reach, asked, tiles, form, COLS: tl.constexpr, EDGE: tl.constexpr
):
    """Return the state of the rows after one more tile, from its scores x [rows, cols] and values v [cols, dims].

    own [rows]: the key columns at which the queries stand; `start` the first column of the tile; `reach` the window of
    the windowed distance. EDGE: whether some keys may be hidden, after their query, or nearer to it than `reach`.
    """
    mass, moment, distance, windowed = state.sums
    highest = tl.max(x, 1)
    peak = tl.maximum(state.peak, highest)
    fall = state.peak * unit - peak * unit
    shrink = tl.exp2(fall)
    slotted = shrink[:, None]
    if asked.ENTROPY:
        moment = (moment + mass * fall[:, None]) * slotted
    mass *= slotted
    if asked.DISTANCE:
        distance *= slotted
        if not EDGE and tiles.slots > tiles.run:
            # past the columns of other slots
            distance += mass * ((COLS - COLS // tiles.slots * tiles.run) // tiles.run)
    away = 0.0
    if EDGE:
        if asked.WINDOWED:
            windowed *= slotted
        away = (own - start)[:, None].to(tl.float32) - first_columns(COLS, tiles)
    z = tl.fma(x, unit, -(peak * unit)[:, None])
    e = tl.exp2(z)
    sums = tally(Sums(mass, moment, distance, windowed), e, z, away, reach, asked, tiles, EDGE, COLS, 0)
    top = state.top
    if asked.TOP:
        higher = highest > state.peak
        if EDGE:  # these do not come in order: of equal peaks the lower key stays
            higher |= (highest == state.peak) & (start < top)
        top = tl.where(higher, start, top)
    p = e.to(v.dtype)
    members = state.members
    if asked.SETS > 0:
        members = members * shrink[:, None]
        if occupied != 0:
            members = add_members(members, e, p, word, asked, form)
    if tiles.settle and not EDGE:
        shrink = after(shrink, sums, asked)
    output = tl.dot(p, v, state.output * shrink[:, None], input_precision=form.PRECISION)
    return State(peak, output, top, members, sums)


@triton.jit
def after(shrink, sums, asked):
    """Return shrink [rows] as it is, once the sums are there, none of which has the sign that would change it.

    No product waits for the sums of its tile. Where products run by themselves, as on Blackwell, Triton therefore puts
    the sums off to the next pass of the loop, and until then keeps all weights and their logarithms in registers.
    """
    settled = sums.mass
    if asked.ENTROPY:
        settled -= sums.moment
    if asked.DISTANCE:
        settled += sums.distance
    return tl.where(tl.sum(settled, 1) < 0, 0.0, shrink)


@triton.jit
def first_columns(COLS: tl.constexpr, tiles):
    """Return the first column of each slot in a tile of COLS: [1, SLOTS] float32."""
    slot = tl.arange(0, tiles.slots)
    return (slot // tiles.run * (COLS // tiles.slots * tiles.run) + slot % tiles.run).to(tl.float32)[None, :]


@triton.jit
def tally(sums, e, z, away, reach, asked, tiles, EDGE: tl.constexpr, COLS: tl.constexpr, PAST: tl.constexpr):
    """Return the sums with weights e [rows, COLS] added, of which z are the logarithms to base 2.

    Where the columns of a slot are in one thread's registers, a sum takes one instruction for each weight. A sum over
    a row takes products, a tree of additions and more between threads.

    Where EDGE, `away` [rows, SLOTS] is the distance from the query to the first column of a slot, and PAST how far
    these columns are past that. Elsewhere `distance` is in units of RUN columns, and from the slot's latest column: as
    a slot goes from one column to the next, all of its mass gets that much further away.
    """
    mass, moment, distance, windowed = sums
    SLOTS: tl.constexpr = tiles.slots
    if COLS == SLOTS or SLOTS == 1:
        past = PAST + tl.arange(0, COLS // SLOTS)[None, :].to(tl.float32)
        if asked.ENTROPY:
            moment = add_product(moment, e, z, SLOTS)
        if EDGE:
            if asked.DISTANCE:
                distance = add_product(distance, e, away - past, SLOTS)
            if asked.WINDOWED:
                windowed = add_product(windowed, e, tl.minimum(away - past, reach), SLOTS)
        elif asked.DISTANCE:
            distance += mass * (COLS // SLOTS)
            if SLOTS == 1:
                distance = add_product(distance, e, COLS - 1 - past, SLOTS)
        return Sums(add(mass, e, SLOTS), moment, distance, windowed)
    else:
        e_one, e_other = halves(e, COLS, tiles)
        z_one, z_other = halves(z, COLS, tiles)
        sums = tally(sums, e_one, z_one, away, reach, asked, tiles, EDGE, COLS // 2, PAST)
        beyond: tl.constexpr = PAST + COLS // SLOTS * tiles.run // 2
        return tally(sums, e_other, z_other, away, reach, asked, tiles, EDGE, COLS // 2, beyond)


@triton.jit
def add(total, terms, SLOTS: tl.constexpr):
    """Return total [rows, SLOTS] plus terms [rows, cols]; there are SLOTS columns, or any number where SLOTS is 1."""
    return total + tl.sum(terms, 1)[:, None] if SLOTS == 1 else total + terms


@triton.jit
def add_product(total, e, weight, SLOTS: tl.constexpr):
    """Return total [rows, SLOTS] plus e * weight [rows, cols], columns as in `add`."""
    return total + tl.sum(e * weight, 1)[:, None] if SLOTS == 1 else tl.fma(e, weight, total)


@triton.jit
def halves(x, COLS: tl.constexpr, tiles):
    """Return the first half of the columns of every slot, and the second: [rows, COLS] -> two of [rows, COLS // 2]."""
    ROWS: tl.constexpr = x.shape[0]
    SPAN: tl.constexpr = COLS // tiles.slots * tiles.run
    one, other = tl.split(x.reshape([ROWS, COLS // SPAN, 2, SPAN // 2]).permute([0, 1, 3, 2]))
    return one.reshape([ROWS, COLS // 2]), other.reshape([ROWS, COLS // 2])


@triton.jit
def add_members(sums, e, p, word, asked, form):
    """Return sums [rows, WIDE] plus the weights e [rows, cols] of the keys in each set; bit s of a word is set s.

    A matrix product with the members takes fewer instructions than one set's sum. p is e as the product takes it.
    """
    member = ((word[:, None] >> tl.arange(0, asked.WIDE)[None, :]) & 1).to(p.dtype)
    sums = tl.dot(p, member, sums, input_precision=form.PRECISION)
    if p.dtype != tl.float32:
        # what rounding to half precision took away, itself rounded
        sums = tl.dot((e - p.to(tl.float32)).to(p.dtype), member, sums, input_precision=form.PRECISION)
    return sums


@triton.jit
def search(rows, tile, call, form, COLS: tl.constexpr):
    """Return the first key column of each row's largest score in the tile that starts at `tile`: [rows] -> [rows].

    -1 for a row without one. Rows tend to share a few tiles; each is visited once.
    """
    NONE: tl.constexpr = 2147483647
    found = tl.zeros_like(tile) - 1
    left = tl.where(tile >= 0, tile, NONE)
    start = tl.min(left, 0)
    while start < NONE:
        j = start + tl.arange(0, COLS)
        x = products(rows.q, load_rows(rows.key, call.key, j, call.keys, form), call, form)
        x = hide(x, rows, j, call, form)
        first = tl.min(tl.where(x == tl.max(x, 1)[:, None], j[None, :], NONE), 1)
        found = tl.where(left == start, first, found)
        left = tl.where(left == start, NONE, left)
        start = tl.min(left, 0)
    return found


@triton.jit
def top_weight_of(peak, unit, share):
    """Return the weight at the peak, where the exponent of `add_tile` is what rounding peak * unit took away."""
    return share * tl.exp2(tl.fma(peak, unit, -(peak * unit)))


@triton.jit
def close_rows(peak, mass, sink, unit, SINKS: tl.constexpr):
    """Return a row's (peak to base 2, log2 of the sum of weights relative to it, what to multiply sums by).

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
    """Return -sum p log p in nats: sum p (lse - s), with lse and s both relative to the peak."""
    return LN2 * share * (mass * spread - moment)
