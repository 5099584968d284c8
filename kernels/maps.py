"""Parts and pictures of an attention map again, in torch, from what a forward pass leaves: query, key and lse."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.kernels.blocks import MOST_ROWS, Block, visible_cols
from probe.kernels.contract import Scoring
from probe.kernels.pooled import PooledMap
from probe.kernels.sweep import Sweep, as_written


@as_written
def tile(query: Tensor, key: Tensor, lse: Tensor, *, rows: range, cols: range, scoring: Scoring) -> Tensor:
    """Return the weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float32."""
    batch, heads = query.shape[:2]
    sweep = Sweep(query, key, scoring)
    lse = lse.to(sweep.dtype)
    found = query.new_zeros(batch, heads, rows[-1] + 1 - rows[0], cols[-1] + 1 - cols[0], dtype=torch.float32)
    for start in range(rows[0], rows[-1] + 1, MOST_ROWS):
        stop = min(start + MOST_ROWS, rows[-1] + 1)
        seen = visible_cols(start, stop, key.shape[2], scoring.mask)
        seen = slice(max(seen.start, cols[0]), min(seen.stop, cols[-1] + 1))
        if seen.start < seen.stop:
            block = Block(slice(0, batch), slice(0, key.shape[1]), slice(start, stop), seen)
            p = sweep.weights(block, sweep.scores(block), lse).flatten(1, 2)
            found[:, :, start - rows[0] : stop - rows[0], seen.start - cols[0] : seen.stop - cols[0]] = p
    return found[:, :, :: rows.step, :: cols.step].contiguous()


@as_written
def pool(
    query: Tensor, key: Tensor, lse: Tensor, *, shape: tuple[int, int], scoring: Scoring, budget: int | None = None
) -> Tensor:
    """Return the max of p over tiles: at most [batch, heads, *shape] float32."""
    sweep = Sweep(query, key, scoring, budget)
    pooled, lse = PooledMap(sweep, shape), lse.to(sweep.dtype)
    for block in sweep.blocks():
        if block.cols.start < block.cols.stop:
            pooled.add(block, sweep.weights(block, sweep.scores(block), lse))
    return pooled.map.flatten(1, 2).float()
