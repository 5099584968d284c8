"""The largest weight of every tile of an attention map, so that a map of any length can be drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probe.kernels.blocks import Block
from probe.kernels.sweep import Sweep


class PooledMap:
    """Max of p over tiles, `map` [batch, kv_heads, group, rows, cols], with at most `most` rows and columns."""

    def __init__(self, sweep: Sweep, most: tuple[int, int]) -> None:
        queries, keys = sweep.query.shape[2], sweep.key.shape[2]
        self.tile_rows, self.tile_cols = math.ceil(queries / most[0]), math.ceil(keys / most[1])
        self.map = sweep.zeros(math.ceil(queries / self.tile_rows), math.ceil(keys / self.tile_cols))

    def add(self, block: Block, p: Tensor) -> None:
        """Add the weights of one block, [batch, kv_heads, group, rows, cols]."""
        tiles = tile_maxima(p, block.cols.start, self.tile_cols)
        tiles = tile_maxima(tiles.transpose(-1, -2), block.rows.start, self.tile_rows).transpose(-1, -2)
        row, col = block.rows.start // self.tile_rows, block.cols.start // self.tile_cols
        rows, cols = slice(row, row + tiles.shape[-2]), slice(col, col + tiles.shape[-1])
        target = self.map[block.batch, block.kv_heads, :, rows, cols]
        torch.maximum(target, tiles, out=target)


def tile_maxima(x: Tensor, start: int, size: int) -> Tensor:
    """Return the maxima of the runs [0, size), [size, 2 size).. of numbers that begin with `start`."""
    length = x.shape[-1]
    head = min(-start % size, length)
    body = head + (length - head) // size * size
    parts = []
    if head:
        parts.append(x[..., :head].amax(-1, keepdim=True))
    if body > head:
        parts.append(x[..., head:body].unflatten(-1, (-1, size)).amax(-1))
    if body < length:
        parts.append(x[..., body:].amax(-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
