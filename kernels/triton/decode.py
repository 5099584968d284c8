"""Rows whose keys several programs shared: their running sums put together."""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.rows import LN2, close_rows, entropy_of, top_weight_of
from probe.kernels.triton.scores import FLOOR


@triton.jit
def combine_kernel(
    outputs,
    peaks,
    masses,
    moments,
    distances,
    windoweds,
    tops,
    set_sums,
    sinks,
    out,
    out_lse,
    out_entropy,
    out_distance,
    out_windowed,
    out_top_weight,
    out_top_key,
    out_mass,
    out_batch,
    out_head,
    out_row,
    rows,
    heads,
    queries,
    splits,
    unit,
    VALUE_WIDTH: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    PARTS: tl.constexpr,
    SINKS: tl.constexpr,
    LSE: tl.constexpr,
    ENTROPY: tl.constexpr,
    DISTANCE: tl.constexpr,
    WINDOWED: tl.constexpr,
    TOP: tl.constexpr,
    SETS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One row: sums [splits, rows, ..] of parts of its keys, each relative to the part's own peak."""
    row = tl.program_id(0).to(tl.int64)
    head = row // queries % heads
    part = tl.arange(0, PARTS)
    held = part < splits
    at = part.to(tl.int64) * rows + row
    part_peak = tl.load(peaks + at, mask=held, other=FLOOR)
    part_mass = tl.load(masses + at, mask=held, other=0.0)
    peak = tl.max(part_peak, 0)
    fall = (part_peak - peak) * unit
    shrink = tl.exp2(fall)
    mass = tl.sum(part_mass * shrink, 0)
    sink = 0.0
    if SINKS:
        sink = tl.load(sinks + head) * (1 / LN2)
    top_peak, spread, share = close_rows(peak, mass, sink, unit, SINKS)
    seen = mass != 0
    nan = float("nan")

    dim = tl.arange(0, VALUE_DIMS)
    wide = held[:, None] & (dim < VALUE_WIDTH)[None, :]
    output = tl.load(outputs + at[:, None] * VALUE_WIDTH + dim[None, :], mask=wide, other=0.0)
    output = tl.sum(output * shrink[:, None], 0) * share
    place = out + row // queries // heads * out_batch + head * out_head + row % queries * out_row
    tl.store(place + dim, output.to(out.dtype.element_ty), mask=dim < VALUE_WIDTH)
    if LSE:
        tl.store(out_lse + row, tl.where(seen, LN2 * (top_peak + spread), float("-inf")))
    if ENTROPY:
        moment = tl.load(moments + at, mask=held, other=0.0)
        moment = tl.sum((moment + part_mass * fall) * shrink, 0)
        tl.store(out_entropy + row, tl.where(seen, entropy_of(moment, mass, spread, share), nan))
    if DISTANCE:
        distance = tl.sum(tl.load(distances + at, mask=held, other=0.0) * shrink, 0) * share
        tl.store(out_distance + row, tl.where(seen, distance, nan))
    if WINDOWED:
        windowed = tl.sum(tl.load(windoweds + at, mask=held, other=0.0) * shrink, 0) * share
        tl.store(out_windowed + row, tl.where(seen, windowed, nan))
    if TOP:
        # parts are in the order of their keys: the first at the peak has the lowest
        tl.store(out_top_weight + row, top_weight_of(peak, unit, share))
        first = tl.argmax(part_peak, 0, tie_break_left=True)
        tl.store(out_top_key + row, tl.load(tops + first.to(tl.int64) * rows + row))
    if SETS > 0:
        bit = tl.arange(0, WIDE)
        some = held[:, None] & (bit < SETS)[None, :]
        sums = tl.load(set_sums + at[:, None] * SETS + bit[None, :], mask=some, other=0.0)
        sums = tl.where(seen, tl.sum(sums * shrink[:, None], 0) * share, nan)
        tl.store(out_mass + row * SETS + bit, sums, mask=bit < SETS)
