"""The weight that each key receives: the mean of its column of the attention map over a band of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.blocks import Block
from probe.kernels.contract import Band, Mask


class Received:
    """Sums of p over the queries of a band, [batch, kv_heads, group, keys], and how many there are, [batch, keys]."""

    def __init__(
        self, lead: tuple[int, int, int], queries: int, keys: int, mask: Mask, band: Band, *, dtype: torch.dtype, device
    ) -> None:
        self.mask, self.band = mask, band
        self.ahead = mask.first_query - mask.first_key
        counted = counted_queries(queries, mask, band, device)
        self.rows = queries_in_band(counted, keys, self.ahead, band).expand(lead[0], -1)
        self.counted = counted.to(dtype)
        self.sums = torch.zeros(*lead, keys, dtype=dtype, device=device)

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
        first, last = block.rows.start + self.ahead, block.rows.stop - 1 + self.ahead  # the rows' own key indices
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
        i = torch.arange(block.rows.start, block.rows.stop, device=device)[:, None] + self.ahead
        away = i - torch.arange(cols.start, cols.stop, device=device)
        inside = away >= self.band.lo
        return inside if self.band.hi is None else inside & (away <= self.band.hi)
