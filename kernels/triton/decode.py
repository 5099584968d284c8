"""Rows whose keys several programs shared: their running sums put together."""

from __future__ import annotations

import triton
import triton.language as tl

from probe.kernels.triton.rows import close_rows, entropy_of, top_weight_of
from probe.kernels.triton.scores import FLOOR, LN2


@triton.jit
def combine_kernel(
    running,
    parts,
    sinks,
    out,
    outs,
    rows,
    heads,
    queries,
    splits,
    unit,
    asked: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Combine one row: sums [splits, rows, ..] of parts of its keys, each relative to the part's own peak.

    `running` are the outputs; of `parts`, lse is the peak and top_weight the mass.
    """
    row = tl.program_id(0).to(tl.int64)
    head = row // queries % heads
    part = tl.arange(0, PARTS)
    held = part < splits
    at = part.to(tl.int64) * rows + row
    part_peak = tl.load(parts.lse + at, mask=held, other=FLOOR)
    part_mass = tl.load(parts.top_weight + at, mask=held, other=0.0)
    peak = tl.max(part_peak, 0)
    fall = (part_peak - peak) * unit
    shrink = tl.exp2(fall)
    mass = tl.sum(part_mass * shrink, 0)
    sink = 0.0
    if asked.SINKS:
        sink = tl.load(sinks + head) * (1 / LN2)
    top_peak, spread, share = close_rows(peak, mass, sink, unit, asked.SINKS)
    seen = mass != 0
    nan = float("nan")

    dim = tl.arange(0, out.DIMS)
    wide = held[:, None] & (dim < out.WIDTH)[None, :]
    output = tl.load(running + at[:, None] * out.WIDTH + dim[None, :], mask=wide, other=0.0)
    output = tl.sum(output * shrink[:, None], 0) * share
    place = out.at + row // queries // heads * out.batch + head * out.head + row % queries * out.row
    tl.store(place + dim, output.to(out.at.dtype.element_ty), mask=dim < out.WIDTH)
    if asked.LSE:
        tl.store(outs.lse + row, tl.where(seen, LN2 * (top_peak + spread), float("-inf")))
    if asked.ENTROPY:
        moment = tl.load(parts.entropy + at, mask=held, other=0.0)
        moment = tl.sum((moment + part_mass * fall) * shrink, 0)
        tl.store(outs.entropy + row, tl.where(seen, entropy_of(moment, mass, spread, share), nan))
    if asked.DISTANCE:
        distance = tl.sum(tl.load(parts.distance + at, mask=held, other=0.0) * shrink, 0) * share
        tl.store(outs.distance + row, tl.where(seen, distance, nan))
    if asked.WINDOWED:
        windowed = tl.sum(tl.load(parts.windowed_distance + at, mask=held, other=0.0) * shrink, 0) * share
        tl.store(outs.windowed_distance + row, tl.where(seen, windowed, nan))
    if asked.TOP:
        # parts are in the order of their keys: the first at the peak has the lowest
        tl.store(outs.top_weight + row, top_weight_of(peak, unit, share))
        first = tl.argmax(part_peak, 0, tie_break_left=True)
        tl.store(outs.top_key + row, tl.load(parts.top_key + first.to(tl.int64) * rows + row))
    if asked.SETS > 0:
        bit = tl.arange(0, asked.WIDE)
        some = held[:, None] & (bit < asked.SETS)[None, :]
        members = tl.load(parts.mass + at[:, None] * asked.SETS + bit[None, :], mask=some, other=0.0)
        members = tl.where(seen, tl.sum(members * shrink[:, None], 0) * share, nan)
        tl.store(outs.mass + row * asked.SETS + bit, members, mask=bit < asked.SETS)
