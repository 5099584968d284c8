"""The weight that each key receives: the mean of its column of the attention map over a band of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.blocks import Block
from probe.kernels.contract import Band
from probe.kernels.sweep import Sweep


class Received:
    """Sums of p over the queries of a band, [batch, kv_heads, group, keys], and how many there are, [batch, keys]."""

    def __init__(self, sweep: Sweep, band: Band) -> None:
        self.mask, self.band = sweep.scoring.mask, band
        self.sums = sweep.zeros(sweep.key.shape[2])
        counted = counted_queries(sweep.query.shape[2], self.mask, band, self.sums.device)
        self.rows = queries_in_band(counted, self.sums.shape[3], self.mask.ahead, band).expand(len(self.sums), -1)
        self.counted = counted.to(sweep.dtype)

    def mean(self) -> Tensor:
        """Return the mean weight on each key, NaN where no query counts: [batch, kv_heads, group, keys]."""
        return self.sums / self.rows[:, None, None]

    def add(self, block: Block, p: Tensor) -> None:
        """Add the weights of one block, [batch, kv_heads, group, rows, cols]."""
        weight = self.counted if self.counted.shape[0] == 1 else self.counted[block.batch]
        weight = weight[:, None, None, None, block.rows]
        target = block.of(self.sums, cols=3)
        for cols, whole in self.pieces(block):
            part = p[..., cols.start - block.cols.start : cols.stop - block.cols.start]
            if not whole:
                part = part * self.inside(block, cols, p.device)
            target[..., cols.start - block.cols.start : cols.stop - block.cols.start] += (weight @ part)[..., 0, :]

    def pieces(self, block: Block) -> list[tuple[slice, bool]]:
        """Return the block's key indices inside the band, cut where it starts and stops to hold for every row."""
        first = block.rows.start + self.mask.ahead  # the rows' own key indices
        last = block.rows.stop - 1 + self.mask.ahead
        start, stop = block.cols.start, block.cols.stop
        whole_start, whole_stop = start, stop
        if self.band.hi is not None:
            start, whole_start = first - self.band.hi, last - self.band.hi
        if self.band.lo > 0 or not self.mask.causal:  # else the weights beyond are 0 already
            stop, whole_stop = last - self.band.lo + 1, first - self.band.lo + 1
        low, high = block.cols.start, block.cols.stop
        start = min(max(start, low), high)
        stop = min(max(stop, start), high)
        whole_start = min(max(whole_start, start), stop)
        whole_stop = min(max(whole_stop, whole_start), stop)
        cuts = ((start, whole_start, False), (whole_start, whole_stop, True), (whole_stop, stop, False))
        return [(slice(a, b), whole) for a, b, whole in cuts if a < b]

    def inside(self, block: Block, cols: slice, device: torch.device) -> Tensor:
        """Return whether the pairs lie in the band: [rows, cols] bool."""
        i = torch.arange(block.rows.start, block.rows.stop, device=device)[:, None] + self.mask.ahead
        away = i - torch.arange(cols.start, cols.stop, device=device)
        inside = away >= self.band.lo
        return inside if self.band.hi is None else inside & (away <= self.band.hi)
