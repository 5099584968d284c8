"""The arguments that all kernels share, in named tuples: tensors, sizes, visible pairs, and how scores are made.

A kernel takes a `Call`, whose numbers it reads when it runs, and a `Form`, whose constants it is compiled for. The
score of a pair is `unit * x` in base-2 logarithms, with x = q . k, or cap * tanh(slope * q . k) where scores are
capped. Every bound on positions is one interval, `near <= i - j <= far`, with i and j counted in key columns, so that
query row r stands at column r + ahead.
"""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from probe.kernels.contract import ROW_STATISTICS, Scoring

LOG2E = math.log2(math.e)


class Vectors(NamedTuple):
    """A tensor [batch, heads, n, WIDTH]: its address, its strides in elements, and the power of two that tiles have."""

    at: Any
    batch: Any
    head: Any
    row: Any
    dim: Any
    WIDTH: Any
    DIMS: Any

    @classmethod
    def of(cls, tensor: Tensor, *, fixed: bool = False) -> Vectors:
        """Return the tensor as a kernel takes it.

        fixed: compile for the stride of a row, so that addresses within a tile take few registers.
        """
        batch, head, row, dim = tensor.stride()
        width = tensor.shape[3]
        row = tl.constexpr(row) if fixed else row
        return cls(tensor, batch, head, row, dim, tl.constexpr(width), tl.constexpr(padded(width)))


class Bytes(NamedTuple):
    """A bool tensor that broadcasts to [batch, heads, rows, keys]: its address, and strides as of that shape."""

    at: Any = None
    batch: Any = None
    head: Any = None
    row: Any = None
    key: Any = None

    @classmethod
    def of(cls, tensor: Tensor | None) -> Bytes:
        return cls() if tensor is None else cls(tensor.view(torch.uint8), *shared_strides(tensor))


class Shared(NamedTuple):
    """A tensor [batch or 1, heads or 1, ...]: its address, and strides that read a size of 1 for every index."""

    at: Any = None
    batch: Any = None
    head: Any = None

    @classmethod
    def of(cls, tensor: Tensor) -> Shared:
        return cls(tensor, *shared_strides(tensor)[:2])


class Call(NamedTuple):
    """The arguments of a kernel when it runs. group: query heads of a KV head. pack: query heads of a program."""

    query: Vectors
    key: Vectors
    kept: Bytes
    pairs: Bytes
    queries: Any
    keys: Any
    heads: Any
    group: Any
    pack: Any
    ahead: Any
    near: Any
    far: Any
    slope: Any
    cap: Any
    unit: Any


class Form(NamedTuple):
    """The constants that a kernel is compiled for.

    KEPT and PAIRS: whether the mask has `keys` and `pairs`. UPCAST: whether tiles are widened as they are loaded.
    """

    CAPPED: bool
    SLIDING: bool
    KEPT: bool
    PAIRS: bool
    PRECISION: str
    UPCAST: bool


# The row statistics that the forward pass writes, or None for those that are not asked for.
RowOutputs = namedtuple("RowOutputs", [name for name in ROW_STATISTICS if name != "partial"], defaults=(None,) * 7)


def arguments(query: Vectors, key: Vectors, scoring: Scoring, *, pack: int = 1) -> tuple[Call, Form]:
    """Return what every kernel is told of a call."""
    (heads, queries), (kv_heads, keys) = query.at.shape[1:3], key.at.shape[1:3]
    mask, scale, softcap = scoring.mask, scoring.scale, scoring.softcap
    furthest = queries + keys + abs(mask.ahead)  # no pair is further apart, and int32 holds it
    window = furthest + 1 if mask.window is None else min(mask.window, furthest + 1)
    call = Call(
        query=query,
        key=key,
        kept=Bytes.of(None if mask.keys is None else mask.keys[:, None, None]),
        pairs=Bytes.of(mask.pairs),
        queries=queries,
        keys=keys,
        heads=heads,
        group=heads // kv_heads,
        pack=pack,
        ahead=mask.ahead,
        near=0 if mask.causal else -furthest,
        far=window - 1,
        # 1 - 2 / (2 ** (slope * x) + 1) is the hyperbolic tangent of scale * x / softcap
        slope=0.0 if softcap is None else 2 * LOG2E * scale / softcap,
        cap=0.0 if softcap is None else softcap * LOG2E,
        unit=scale * LOG2E if softcap is None else 1.0,
    )
    form = Form(
        CAPPED=softcap is not None,
        SLIDING=window <= furthest,
        KEPT=mask.keys is not None,
        PAIRS=mask.pairs is not None,
        # Float32 tiles are multiplied with float32's precision, for which NVIDIA's tensor cores take three products.
        # Half precision has tensor cores that accumulate in float32, whatever this says.
        PRECISION="tf32x3" if query.at.is_cuda and torch.version.hip is None else "ieee",
        # the interpreter multiplies bfloat16 tiles wrongly
        UPCAST=query.at.dtype == torch.bfloat16 and interpreted(),
    )
    return call, form


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors, instead of being compiled."""
    return triton.knobs.runtime.interpret


def padded(width: int) -> int:
    """Return the power of two that a tile has for vectors of `width`."""
    return max(16, triton.next_power_of_2(width))


def reachable(vectors: Tensor, rows: int) -> Tensor:
    """Return vectors [.., n, width], copied if elements of `rows` vectors lie further apart than 31 bits can say."""
    row, dim = vectors.stride()[-2:]
    return vectors if (rows - 1) * row + (vectors.shape[-1] - 1) * dim < 2**31 else vectors.contiguous()


def shared_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return strides that read the one element of a dimension of size 1 for every index."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
