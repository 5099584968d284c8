"""Scores of a tile of query rows and key columns: what all Triton kernels share. `call.py` says how they are made."""

from __future__ import annotations

import triton
import triton.language as tl

# The score of a hidden pair: finite, so that weight * score is 0 and not NaN. A row's running peak starts at FLOOR,
# above it, so that hidden pairs have no weight even where a row has seen nothing else.
HIDDEN = tl.constexpr(-2e19)
FLOOR = tl.constexpr(-1e19)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def head_at(tensor, batch, head):
    """Return where a head of a tensor begins."""
    return tensor.at + batch * tensor.batch + head * tensor.head


@triton.jit
def load_rows(at, vectors, row, rows, form):
    """Return the rows `row` of the `rows` vectors of a head that begins at `at`, 0 beyond them: [len(row), DIMS]."""
    dim = tl.arange(0, vectors.DIMS)
    pointers = at + row[:, None].to(tl.int64) * vectors.row + dim[None, :] * vectors.dim
    inside = (row < rows)[:, None]
    if vectors.WIDTH < vectors.DIMS:
        inside = inside & (dim < vectors.WIDTH)[None, :]
    tile = tl.load(pointers, mask=inside, other=0.0)
    return tile.to(tl.float32) if form.UPCAST else tile


@triton.jit
def load_whole(at, vectors, form, COUNT: tl.constexpr):
    """Return the COUNT rows from the one at `at`, all of which exist: [COUNT, DIMS], with 0 beyond WIDTH.

    Within a tile offsets have 32 bits (`call.reachable`), and are the same for every tile: a loop keeps them. Where the
    stride is a constant of the kernel, that takes few registers; a model has few strides to compile for.
    """
    dim = tl.arange(0, vectors.DIMS)
    pointers = at + (tl.arange(0, COUNT)[:, None] * vectors.row + dim[None, :] * vectors.dim)
    if vectors.WIDTH < vectors.DIMS:
        tile = tl.load(pointers, mask=(dim < vectors.WIDTH)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile.to(tl.float32) if form.UPCAST else tile


@triton.jit
def products(q, k, call, form):
    """Return unmasked scores in units of `unit`: [rows, dims], [cols, dims] -> [rows, cols] float32."""
    return scores(q, tl.trans(k), call, form)


@triton.jit
def scores(q, k, call, form):
    """Return the same from a transposed k: [rows, dims], [dims, cols] -> [rows, cols] float32."""
    x = tl.dot(q, k, input_precision=form.PRECISION)
    if form.CAPPED:
        x = call.cap * (1 - 2 / (tl.exp2(x * call.slope) + 1))
    return x


@triton.jit
def hide_by_position(x, own, j, call):
    """Return x, HIDDEN where not near <= own - j <= far, or where the key does not exist: own [rows], j [cols]."""
    away = own[:, None] - j[None, :]
    return tl.where((away >= call.near) & (away <= call.far) & (j < call.keys)[None, :], x, HIDDEN)


@triton.jit
def hide_keys(x, kept, j, call):
    """Return x, HIDDEN where the byte of a key is 0; `kept` is where those of the text begin."""
    shown = tl.load(kept + j.to(tl.int64) * call.kept.key, mask=j < call.keys, other=0)
    return tl.where((shown != 0)[None, :], x, HIDDEN)


@triton.jit
def hide_pairs(x, pairs, j, call):
    """Return x, HIDDEN where the byte of the pair is 0; `pairs` [rows] is where the rows of the map begin."""
    pointers = pairs[:, None] + j[None, :].to(tl.int64) * call.pairs.key
    shown = tl.load(pointers, mask=(j < call.keys)[None, :], other=0)
    return tl.where(shown != 0, x, HIDDEN)


@triton.jit
def hide_pairs_within(x, pairs, i, j, call):
    """Return x, HIDDEN where the byte of the pair is 0 or the query does not exist; `pairs` is the head's address."""
    pointers = pairs + i[:, None].to(tl.int64) * call.pairs.row + j[None, :].to(tl.int64) * call.pairs.key
    shown = tl.load(pointers, mask=(i < call.queries)[:, None] & (j < call.keys)[None, :], other=0)
    return tl.where(shown != 0, x, HIDDEN)


@triton.jit
def hide(x, rows, j, call, form):
    """Return x, HIDDEN where any mask hides the pair of a row and a key j [cols]; `rows` are a program's (`Rows`)."""
    x = hide_by_position(x, rows.own, j, call)
    if form.KEPT:
        x = hide_keys(x, rows.kept, j, call)
    if form.PAIRS:
        x = hide_pairs(x, rows.pairs, j, call)
    return x


@triton.jit
def offsets(lse):
    """Return lse to base 2, and +inf for a row that sees nothing: its scores less this have weight 0."""
    return tl.where(lse == float("-inf"), float("inf"), lse * (1 / LN2))
