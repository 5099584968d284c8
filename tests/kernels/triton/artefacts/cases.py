"""The launches that are compiled: every Triton kernel, as a model in half precision would launch it.

8 query heads on 2 KV heads, causal, 4,096 tokens. The tensors have no storage; the tiles are those of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.kernels.contract import Band, Mask, Request, Scoring
from probe.kernels.triton import columns, launch, pooled, tile
from probe.kernels.triton.tiles import decode_tiles, forward_tiles


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its name, and the bytes of shared memory that a program may have on it."""

    name: str
    shared: int


# CUDA C++ Programming Guide, "Compute Capabilities"
DEVICES = {80: Device("A100", 163 * 1024), 90: Device("H100", 227 * 1024), 100: Device("B200", 227 * 1024)}
CAPABILITIES = tuple(DEVICES)
WIDTHS = (64, 128)
TOKENS = 4096
HEADS, KV_HEADS = 8, 2

Case = Callable[[int, tuple[int, int]], object]

SCORING = Scoring(Mask(), 0.125)


def tensors(width: int, queries: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and lse for heads of `width`, in float16, without storage; the value looks as the key does."""
    query = torch.empty(1, HEADS, queries, width, dtype=torch.float16, device="meta")
    key = torch.empty(1, KV_HEADS, TOKENS, width, dtype=torch.float16, device="meta")
    return query, key, torch.empty(1, HEADS, queries, device="meta")


def key_sets(count: int) -> Tensor:
    """Return `count` key sets, the same for all texts and heads, without storage."""
    return torch.empty(1, 1, count, TOKENS, dtype=torch.bool, device="meta")


ROWS = Request(lse=True, entropy=True, distance=True, windowed_distance=512, top=1)


def forward(request: Request) -> Case:
    """Return the forward pass with the row statistics that a request names."""

    def case(width: int, capability: tuple[int, int]) -> object:
        query, key, _ = tensors(width)
        sets = 0 if request.sets is None else request.sets.shape[2]
        tiles = forward_tiles(width, query.dtype, capability, sets=sets)
        return launch.forward(query, key, key, sinks=None, request=request, tiles=tiles, scoring=SCORING)

    return case


def decode(width: int, capability: tuple[int, int]) -> object:
    """Launch one query against the cache, its keys split over programs, and the kernel that puts the parts together."""
    query, key, _ = tensors(width, queries=1)
    tiles = decode_tiles(4, width, query.dtype, capability)._replace(splits=8)
    return launch.forward(query, key, key, sinks=None, request=ROWS, tiles=tiles, scoring=SCORING)


def top(width: int, capability: tuple[int, int]) -> object:
    """Launch the sweep for the eight largest weights."""
    query, key, lse = tensors(width)
    tiles = forward_tiles(width, query.dtype, capability)
    return launch.top(query, key, lse[..., None], k=8, tiles=tiles, scoring=SCORING)


def partial(width: int, capability: tuple[int, int]) -> object:
    """Launch the partial sums of four key sets."""
    query, key, lse = tensors(width)
    tiles = forward_tiles(width, query.dtype, capability)
    return launch.partial(query, key, key, lse, key_sets(4), tiles=tiles, scoring=SCORING)


def received(width: int, capability: tuple[int, int]) -> object:
    """Launch the column sweep and its edges."""
    query, key, lse = tensors(width)
    tiles = columns.column_tiles(width, query.dtype, capability)
    return columns.received(query, key, lse, band=Band(), tiles=tiles, scoring=SCORING)


def pooled_map(width: int, capability: tuple[int, int]) -> object:
    """Launch a pooled map of 512 x 512."""
    query, key, lse = tensors(width)
    return pooled.pool(query, key, lse, shape=(512, 512), scoring=SCORING)


def exact_tile(width: int, capability: tuple[int, int]) -> object:
    """Launch a rectangle of weights."""
    query, key, lse = tensors(width)
    return tile.tile(query, key, lse, rows=range(100, 612), cols=range(512), scoring=SCORING)


CASES: dict[str, Case] = {
    "plain": forward(Request()),
    "rows": forward(ROWS),
    "rows and 32 sets": forward(replace(ROWS, sets=key_sets(32))),
    "received": received,
    "pooled": pooled_map,
    "tile": exact_tile,
    "top 8": top,
    "partial": partial,
    "decode": decode,
}
