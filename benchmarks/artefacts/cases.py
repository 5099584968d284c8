"""The launches that are compiled: every Triton kernel, as a model in half precision would launch it.

8 query heads on 2 KV heads, causal, 4,096 tokens. The tensors have no storage; the tiles are those of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from probe.kernels.contract import Band, Mask, Request
from probe.kernels.triton import columns, launch, pooled, tile
from probe.kernels.triton.tiles import Tiles, decode_tiles, forward_tiles

CAPABILITIES = (80, 90, 100)
WIDTHS = (64, 128)
TOKENS = 4096
HEADS, KV_HEADS = 8, 2
PACK = HEADS // KV_HEADS  # which a forward kernel has in one tile

Case = Callable[[int, tuple[int, int]], object]

# Scores as every kernel takes them, left padding included where it reads one more word for each key
SCORING = {"mask": Mask(), "scale": 0.125, "softcap": None}


def tensors(width: int, queries: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and lse of `width`, in float16, without storage; a value looks as a key does."""
    query = torch.empty(1, HEADS, queries, width, dtype=torch.float16, device="meta")
    key = torch.empty(1, KV_HEADS, TOKENS, width, dtype=torch.float16, device="meta")
    return query, key, torch.empty(1, HEADS, queries, device="meta")


def key_sets(count: int) -> Tensor:
    """The same `count` key sets for all texts and heads, without storage."""
    return torch.empty(1, 1, count, TOKENS, dtype=torch.bool, device="meta")


ROWS = Request(lse=True, entropy=True, distance=True, windowed_distance=512, top=1)


def forward(request: Request, tiles: Tiles | None = None) -> Case:
    """The forward pass with the statistics of rows that a request names, in the tiles of the device or others."""

    def case(width: int, capability: tuple[int, int]) -> object:
        query, key, _ = tensors(width)
        sets = 0 if request.sets is None else request.sets.shape[2]
        chosen = tiles or forward_tiles(width, query.dtype, capability, sets=sets)
        return launch.forward(query, key, key, sinks=None, request=request, tiles=chosen, **SCORING)

    return case


def wide_tiles(cols: int) -> Tiles:
    """Tiles that suit attention without statistics, which needs fewer registers."""
    return Tiles(rows=128, cols=cols, warps=8, stages=3)


def decode(width: int, capability: tuple[int, int]) -> object:
    """One query against the cache, its keys split over programs, and what puts the parts together."""
    query, key, _ = tensors(width, queries=1)
    tiles = replace(decode_tiles(4, width, query.dtype, capability), splits=8)
    return launch.forward(query, key, key, sinks=None, request=ROWS, tiles=tiles, **SCORING)


def top(width: int, capability: tuple[int, int]) -> object:
    """The eight largest weights."""
    query, key, lse = tensors(width)
    return launch.top(query, key, lse[..., None], k=8, tiles=forward_tiles(width, query.dtype, capability), **SCORING)


def partial(width: int, capability: tuple[int, int]) -> object:
    """The partial sums of four key sets."""
    query, key, lse = tensors(width)
    tiles = forward_tiles(width, query.dtype, capability)
    return launch.partial(query, key, key, lse, sets=key_sets(4), tiles=tiles, **SCORING)


def received(width: int, capability: tuple[int, int]) -> object:
    """What each key receives."""
    query, key, lse = tensors(width)
    tiles = columns.column_tiles(width, query.dtype, capability)
    return columns.received(query, key, lse, band=Band(), tiles=tiles, **SCORING)


def pooled_map(width: int, capability: tuple[int, int]) -> object:
    """A map of 512 x 512."""
    query, key, lse = tensors(width)
    return pooled.pool(query, key, lse, shape=(512, 512), **SCORING)


def exact_tile(width: int, capability: tuple[int, int]) -> object:
    """A rectangle of weights."""
    query, key, lse = tensors(width)
    return tile.tile(query, key, lse, rows=range(100, 612), cols=range(512), **SCORING)


CASES: dict[str, Case] = {
    "plain": forward(Request()),
    "plain, 64 keys": forward(Request(), wide_tiles(64)),
    "plain, 128 keys": forward(Request(), wide_tiles(128)),
    "rows": forward(ROWS),
    "rows and 4 sets": forward(replace(ROWS, sets=key_sets(4))),
    "rows and 32 sets": forward(replace(ROWS, sets=key_sets(32))),
    "received": received,
    "pooled": pooled_map,
    "tile": exact_tile,
    "top 8": top,
    "partial": partial,
    "decode": decode,
}
