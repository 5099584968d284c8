"""Pooled maps, put together from blocks that cut across the tiles."""

from __future__ import annotations

import math

import pytest
import torch

from probe.kernels.blocks import Block
from probe.kernels.contract import Mask, Scoring
from probe.kernels.pooled import PooledMap, tile_maxima
from probe.kernels.sweep import Sweep


@pytest.mark.parametrize(
    ("start", "length", "size"), [(0, 12, 4), (0, 13, 4), (3, 12, 4), (5, 2, 4), (7, 1, 4), (8, 9, 1), (2, 3, 50)]
)
def test_tile_maxima_by_loops(start, length, size):
    x = -torch.rand(3, length, generator=torch.Generator().manual_seed(start)) - 1
    tiles: dict[int, float] = {}
    for number in range(start, start + length):
        tile = number // size
        tiles[tile] = max(tiles.get(tile, -math.inf), x[1, number - start].item())
    found = tile_maxima(x, start, size)[1].tolist()
    assert found == [tiles[tile] for tile in sorted(tiles)]


@pytest.mark.parametrize("most", [(4, 5), (1, 1), (33, 2), (100, 100)])
def test_blocks_that_cut_across_tiles(most):
    p = torch.rand(1, 2, 3, 23, 31, generator=torch.Generator().manual_seed(0)).tril()
    sweep = Sweep(torch.zeros(1, 6, 23, 8), torch.zeros(1, 2, 31, 8), Scoring(Mask(), 1.0))
    pooled = PooledMap(sweep, most)
    for start in range(0, 23, 5):
        rows, cols = slice(start, min(start + 5, 23)), slice(max(0, start - 9), start + 5)
        for head in range(2):
            part = p[:, head : head + 1, :, rows, cols]
            pooled.add(Block(slice(0, 1), slice(head, head + 1), rows, cols), part)
            p[:, head, :, rows, : cols.start] = 0
    height, width = math.ceil(23 / most[0]), math.ceil(31 / most[1])
    expected = torch.stack([t.amax(3) for t in p.split(height, 3)], 3)
    expected = torch.stack([t.amax(4) for t in expected.split(width, 4)], 4)
    assert expected.shape[3] <= most[0] and expected.shape[4] <= most[1]
    assert torch.equal(pooled.map, expected)
