"""The number of queries that the mean weight which a key receives is over."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.kernels.contract import Band, Mask


def counted_queries(queries: int, mask: Mask, band: Band, device: torch.device) -> Tensor:
    """Return whether start <= i < stop and the query is not padding: [batch or 1, queries] bool.

    A query is padding where the key at its own position is.
    """
    i = torch.arange(queries, device=device) + mask.first_query
    counted = torch.ones_like(i, dtype=torch.bool)
    if band.start is not None:
        counted &= i >= band.start
    if band.stop is not None:
        counted &= i < band.stop
    if mask.keys is None:
        return counted[None]
    own = i - mask.first_key
    held = (own >= 0) & (own < mask.keys.shape[1])
    return counted & (mask.keys[:, own.clamp(0, mask.keys.shape[1] - 1)] | ~held)


def queries_in_band(counted: Tensor, keys: int, ahead: int, band: Band) -> Tensor:
    """Return how many counted queries have lo <= i - j <= hi for each key: [batch, queries] -> [batch, keys] int64."""
    queries = counted.shape[1]
    before = torch.nn.functional.pad(counted.long().cumsum(1), (1, 0))  # counted queries before each row
    own = torch.arange(keys, device=counted.device) - ahead  # the row at the key's own position
    low = (own + band.lo).clamp(0, queries)
    high = torch.full_like(own, queries) if band.hi is None else (own + band.hi + 1).clamp(0, queries)
    return before[:, high] - before[:, low]
