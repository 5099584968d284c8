"""Scores of a tile of query rows and key columns: what all Triton kernels share.

A kernel says `slope`, `cap` and `unit`: the score is `unit * x` in base-2 logarithms, with x = q . k, or
cap * tanh(slope * q . k) where scores are capped. Every bound on positions is one interval of i - j: `near <= i - j <=
far` with i and j counted in key columns, so that query row r stands at column r + ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.contract import Mask

LOG2E = math.log2(math.e)

# The score of a hidden pair: finite, so that weight * score is 0 and not NaN. A row's running peak starts at FLOOR,
# above it, so that hidden pairs have no weight even where a row has seen nothing else.
HIDDEN = tl.constexpr(-2e19)
FLOOR = tl.constexpr(-1e19)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores are made, as numbers that a kernel takes."""

    slope: float
    cap: float
    unit: float
    capped: bool
    ahead: int
    near: int
    far: int
    windowed: bool

    @classmethod
    def of(cls, query: Tensor, key: Tensor, mask: Mask, scale: float, softcap: float | None) -> Scoring:
        ahead = mask.first_query - mask.first_key
        furthest = query.shape[2] + key.shape[2] + abs(ahead)  # no pair is further apart, and int32 holds it
        windowed = mask.window is not None and mask.window <= furthest
        return cls(
            # 1 - 2 / (2 ** (slope * x) + 1) is the hyperbolic tangent of scale * x / softcap
            slope=0.0 if softcap is None else 2 * LOG2E * scale / softcap,
            cap=0.0 if softcap is None else softcap * LOG2E,
            unit=scale * LOG2E if softcap is None else 1.0,
            capped=softcap is not None,
            ahead=ahead,
            near=0 if mask.causal else -furthest,
            far=mask.window - 1 if windowed else furthest,  # pyright: ignore[reportOptionalOperand]
            windowed=windowed,
        )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors, instead of being compiled."""
    return triton.knobs.runtime.interpret


def upcast(query: Tensor) -> bool:
    """Whether tiles must be widened as they are loaded: the interpreter multiplies bfloat16 tiles wrongly."""
    return query.dtype == torch.bfloat16 and interpreted()


def precision(query: Tensor) -> str:
    """How float32 tiles are multiplied, to float32's precision: on NVIDIA's tensor cores as three products of halves.

    Half precision has tensor cores that accumulate in float32, whatever this says.
    """
    return "tf32x3" if query.is_cuda and torch.version.hip is None else "ieee"


def padded(width: int) -> int:
    """The power of two that a tile has for vectors of `width`."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def load_rows(at, stride, dim_stride, row, rows, WIDTH: tl.constexpr, DIMS: tl.constexpr, UPCAST: tl.constexpr):
    """Rows `row` of a matrix of `rows` x WIDTH, 0 beyond it: [len(row), DIMS]."""
    dim = tl.arange(0, DIMS)
    pointers = at + row[:, None].to(tl.int64) * stride + dim[None, :] * dim_stride
    inside = (row < rows)[:, None]
    if WIDTH < DIMS:
        inside = inside & (dim < WIDTH)[None, :]
    tile = tl.load(pointers, mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def load_whole(
    at, stride, dim_stride, COUNT: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, UPCAST: tl.constexpr
):
    """The COUNT rows from the one at `at`, all of which exist: [COUNT, DIMS], with 0 beyond WIDTH.

    Within a tile offsets have 32 bits (`reachable`), and are the same for every tile: a loop keeps them. Where the
    stride is a constant of the kernel, that takes few registers; a model has few strides to compile for.
    """
    dim = tl.arange(0, DIMS)
    pointers = at + (tl.arange(0, COUNT)[:, None] * stride + dim[None, :] * dim_stride)
    if WIDTH < DIMS:  # noqa: SIM108
        tile = tl.load(pointers, mask=(dim < WIDTH)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def products(q, k, slope, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """Scores in units of `unit`, unmasked: [rows, dims], [cols, dims] -> [rows, cols] float32."""
    return scores(q, tl.trans(k), slope, cap, CAPPED, PRECISION)


@triton.jit
def scores(q, k, slope, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """The same from a transposed k: [rows, dims], [dims, cols] -> [rows, cols] float32."""
    x = tl.dot(q, k, input_precision=PRECISION)
    if CAPPED:
        x = cap * (1 - 2 / (tl.exp2(x * slope) + 1))
    return x


@triton.jit
def hide_by_position(x, own, j, near, far, keys):
    """HIDDEN where the key column j is not near <= own - j <= far, or does not exist: own [rows], j [cols]."""
    away = own[:, None] - j[None, :]
    return tl.where((away >= near) & (away <= far) & (j < keys)[None, :], x, HIDDEN)


@triton.jit
def hide_keys(x, at, stride, j, keys):
    """HIDDEN where the byte of the key at [keys] is 0."""
    kept = tl.load(at + j.to(tl.int64) * stride, mask=j < keys, other=0)
    return tl.where((kept != 0)[None, :], x, HIDDEN)


@triton.jit
def hide_pairs(x, rows_at, stride, j, keys):
    """HIDDEN where the byte of the pair is 0: rows_at [rows] points at rows of the map."""
    pointers = rows_at[:, None] + j[None, :].to(tl.int64) * stride
    shown = tl.load(pointers, mask=(j < keys)[None, :], other=0)
    return tl.where(shown != 0, x, HIDDEN)


@triton.jit
def hide(
    x,
    own,
    j,
    near,
    far,
    keys,
    kept,
    kept_stride,
    pairs_row,
    pairs_stride,
    KEPT: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """HIDDEN where any mask hides the pair of a row [rows] and a key j [cols]."""
    x = hide_by_position(x, own, j, near, far, keys)
    if KEPT:
        x = hide_keys(x, kept, kept_stride, j, keys)
    if PAIRS:
        x = hide_pairs(x, pairs_row, pairs_stride, j, keys)
    return x


def as_bytes(mask: Tensor | None, stand_in: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """A bool tensor that broadcasts to `shape` as bytes, and its strides as of that shape; without one, all zeros."""
    if mask is None:
        return stand_in, (0,) * len(shape)
    return mask.view(torch.uint8), shared_strides(mask)


def reachable(vectors: Tensor, rows: int) -> Tensor:
    """vectors [.., n, width], copied if the elements of `rows` vectors lie further apart than 31 bits can say."""
    row, dim = vectors.stride()[-2:]
    return vectors if (rows - 1) * row + (vectors.shape[-1] - 1) * dim < 2**31 else vectors.contiguous()


def shared_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides that read the one element of a dimension of size 1 for every index."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
