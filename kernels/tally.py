"""Statistics of attention from blocks of whole rows: what every key receives is added up as the blocks go by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probe.kernels.blocks import HIDDEN, Block, grouped
from probe.kernels.contract import Band, Mask, Request, Statistics

# Keys are searched for the largest weights in chunks of this many: one pass over the scores finds each chunk's maximum.
CHUNK = 64


class Tally:
    """The statistics that a request names, filled block by block; `finish` hands them over.

    Shapes are [batch, kv_heads, group, queries, ...] until then. Every number is in the dtype of the scores.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, request: Request, dtype: torch.dtype) -> None:
        batch, heads, queries, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        self.mask, self.request = mask, request
        self.heads, self.queries, self.keys = heads, queries, keys
        self.group = heads // kv_heads
        lead = (batch, kv_heads, self.group)

        def rows(*more: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(*lead, queries, *more, dtype=dtype, device=query.device)

        self.rows: dict[str, Tensor] = {}
        if request.entropy:
            self.rows["entropy"] = rows()
        if request.distance:
            self.rows["distance"] = rows()
        if request.windowed_distance is not None:
            self.rows["windowed_distance"] = rows()
        if request.top:
            self.rows["top_weight"] = rows(request.top)
            self.rows["top_key"] = rows(request.top, dtype=torch.int64)
        if request.sets is not None:
            self.member = grouped(request.sets, self.group).transpose(-1, -2)  # [.., keys, sets]
            self.rows["mass"] = rows(request.sets.shape[2])
            if request.partial:
                self.rows["partial"] = rows(request.sets.shape[2], value.shape[3])
        self.received: Tensor | None = None
        if request.received is not None:
            self.received = torch.zeros(*lead, keys, dtype=dtype, device=query.device)
            self.counted = counted_queries(query, mask, keys, request.received)
        self.pooled: PooledMap | None = None
        if request.pooled is not None:
            self.pooled = PooledMap(lead, queries, keys, request.pooled, dtype, query.device)

    def add(self, block: Block, p: Tensor, s: Tensor, v: Tensor, *, peak: Tensor, spread: Tensor, total: Tensor | None) -> None:
        """Takes in one block; s is used up.

        p, s: weights and masked scores, [batch, kv_heads, group, rows, cols] of the block; v: [batch, kv_heads, cols,
        value_dim]. Of each row: peak = max s; spread = lse - peak; total = sum p, None for 1.
        """
        row = {name: block.of(tensor, rows=3) for name, tensor in self.rows.items()}
        if "top_key" in row:
            self._top(block, p, s, row["top_weight"], row["top_key"])
        if "distance" in row or "windowed_distance" in row:
            self._distances(block, p, row)
        if "mass" in row:
            self._sets(block, p, v, row)
        if self.received is not None:
            self._receive(block, p, self.received)
        if self.pooled is not None:
            self.pooled.add(block, p)
        if "entropy" in row:
            # shifted by the peak, so that nothing cancels in a row whose one weight is nearly 1
            moment = s.sub_(peak[..., None]).mul_(p).sum(-1)
            row["entropy"].copy_((spread if total is None else spread * total) - moment)

    def finish(self, lse: Tensor, blind: Tensor | None) -> Statistics:
        """The statistics, float32; lse and blind (rows that see no key) are [batch, heads, queries]."""
        found = {"lse": lse} if self.request.lse else {}
        for name, tensor in self.rows.items():
            found[name] = tensor.flatten(1, 2)
            if blind is not None and name in ("entropy", "distance", "windowed_distance"):
                found[name].masked_fill_(blind, math.nan)
            if blind is not None and name == "mass":
                found[name].masked_fill_(blind[..., None], math.nan)
        if self.received is not None:
            found["received"] = self.received.flatten(1, 2) / self.counted[:, None]
            found["received_rows"] = self.counted
        if self.pooled is not None:
            found["pooled"] = self.pooled.map.flatten(1, 2)
        return Statistics(**{name: t.float() if t.is_floating_point() else t for name, t in found.items()})

    def _top(self, block: Block, p: Tensor, s: Tensor, weight: Tensor, key: Tensor) -> None:
        score, column = top_columns(s, self.request.top)
        found = score > HIDDEN / 2
        weight[..., column.shape[-1] :] = 0
        key[..., column.shape[-1] :] = -1
        weight[..., : column.shape[-1]] = p.gather(-1, column)
        column += block.cols.start + self.mask.first_key
        key[..., : column.shape[-1]] = column.masked_fill_(~found, -1)

    def _distances(self, block: Block, p: Tensor, row: dict[str, Tensor]) -> None:
        """Keys nearer than a reach are weighed one by one, those beyond it all at once: every term is positive."""
        window = self.request.windowed_distance
        start, stop = block.cols.start, block.cols.stop
        first = block.rows.start + self.mask.first_query - self.mask.first_key  # the first row's own key index
        size = block.rows.stop - block.rows.start
        near = min(max(first - max(size, window or 0) + 1, start), stop)
        i = torch.arange(first, first + size, dtype=p.dtype, device=p.device)
        away = i[:, None] - torch.arange(near, stop, dtype=p.dtype, device=p.device)
        far = torch.arange(first - start, first - near, -1, dtype=p.dtype, device=p.device)
        beyond, close = p[..., : near - start], p[..., near - start :]
        mass = weigh(beyond, torch.ones_like(far))
        if "distance" in row:
            row["distance"].copy_((close * away).sum(-1) + weigh(beyond, far) + (i - first) * mass)
        if window is not None:
            row["windowed_distance"].copy_((close * away.clamp(max=window)).sum(-1) + window * mass)

    def _sets(self, block: Block, p: Tensor, v: Tensor, row: dict[str, Tensor]) -> None:
        member = block.of(self.member, cols=3).to(p.dtype)  # [batch or 1, kv_heads or 1, group or 1, cols, sets]
        row["mass"].copy_(p @ (member[0, 0, 0] if member.shape[:3] == (1, 1, 1) else member))
        if "partial" in row:
            for index in range(member.shape[-1]):
                row["partial"][..., index, :].copy_(p @ (member[..., index, None] * v[:, :, None]))

    def _receive(self, block: Block, p: Tensor, received: Tensor) -> None:
        band = self.request.received or Band()
        rows, cols = block.rows, block.cols
        ahead = self.mask.first_query - self.mask.first_key
        weight = self._counts(block, p)[:, None, None, None, :]  # [batch or 1, 1, 1, 1, rows]
        # key indices of the band: `start` to `stop` for some row, `full_start` to `full_stop` for all rows
        start, full_start = cols.start, cols.start
        if band.hi is not None:
            start, full_start = rows.start + ahead - band.hi, rows.stop - 1 + ahead - band.hi
        stop, full_stop = rows.stop - band.lo + ahead, rows.start - band.lo + ahead + 1
        if self.mask.causal and band.lo <= 0:
            stop, full_stop = cols.stop, cols.stop
        start, stop = (min(max(at, cols.start), cols.stop) for at in (start, stop))
        full_start = min(max(full_start, start), max(start, stop))
        full_stop = min(max(full_stop, full_start), max(full_start, stop))
        target = block.of(received, cols=3)
        for a, b, everywhere in ((start, full_start, False), (full_start, full_stop, True), (full_stop, stop, False)):
            if a >= b:
                continue
            part = p[..., a - cols.start : b - cols.start]
            if not everywhere:
                i = torch.arange(rows.start, rows.stop, device=p.device)[:, None] + ahead
                away = i - torch.arange(a, b, device=p.device)
                inside = away >= band.lo
                part = part * (inside if band.hi is None else inside & (away <= band.hi))
            target[..., a - cols.start : b - cols.start] += (weight @ part)[..., 0, :]

    def _counts(self, block: Block, p: Tensor) -> Tensor:
        """1 for the rows that `received` averages, else 0: [batch or 1, rows]."""
        band = self.request.received or Band()
        i = torch.arange(block.rows.start, block.rows.stop, device=p.device) + self.mask.first_query
        counts = within(i, band)[None]
        if self.mask.keys is not None:
            counts = counts & real_queries(i, self.mask.keys[block.batch], self.mask.first_key)
        return counts.to(p.dtype)


class PooledMap:
    """The largest weight of every tile of a map: [batch, kv_heads, group, rows, cols]."""

    def __init__(self, lead: tuple[int, ...], queries: int, keys: int, most: tuple[int, int], dtype: torch.dtype, device) -> None:
        self.tile_rows, self.tile_cols = math.ceil(queries / most[0]), math.ceil(keys / most[1])
        rows, cols = math.ceil(queries / self.tile_rows), math.ceil(keys / self.tile_cols)
        self.map = torch.zeros(*lead, rows, cols, dtype=dtype, device=device)

    def add(self, block: Block, p: Tensor) -> None:
        """Takes in the weights of one block, [batch, kv_heads, group, rows, cols]."""
        if not p.shape[-1]:
            return
        tiles = tile_maxima(p, block.cols.start, self.tile_cols)
        tiles = tile_maxima(tiles.transpose(-1, -2), block.rows.start, self.tile_rows).transpose(-1, -2)
        row, col = block.rows.start // self.tile_rows, block.cols.start // self.tile_cols
        target = self.map[block.batch, block.kv_heads, :, row : row + tiles.shape[-2], col : col + tiles.shape[-1]]
        torch.maximum(target, tiles, out=target)


def tile_maxima(x: Tensor, start: int, size: int) -> Tensor:
    """Largest of each run of `size` in the last dimension, whose first element is number `start`: [..., n] -> [..., tiles]."""
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


def top_columns(s: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row, best first, and their columns; ties to the lower column: [..., cols] -> [..., k].

    The k best lie in the k chunks whose maxima are best, ties to the lower chunk, so only those are sorted.
    """
    cols = s.shape[-1]
    k = min(k, cols)
    if not k:
        return s, torch.empty(s.shape, dtype=torch.int64, device=s.device)
    chunks = tile_maxima(s, 0, CHUNK)
    at = first_largest(chunks, min(k, chunks.shape[-1])).sort(-1).values
    column = (at[..., None] * CHUNK + torch.arange(CHUNK, device=s.device)).flatten(-2)
    score = s.gather(-1, column.clamp(max=cols - 1)).masked_fill_(column >= cols, -math.inf)
    best = first_largest(score, k)
    return score.gather(-1, best), column.gather(-1, best)


def first_largest(x: Tensor, k: int) -> Tensor:
    """Indices of the k largest of the last dimension, best first, ties to the lower index: [..., n] -> [..., k]."""
    if k == 1:
        return x.max(-1, keepdim=True).indices  # documented to be the first of several maxima; topk's choice is not
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def weigh(p: Tensor, weights: Tensor) -> Tensor:
    """sum_j p_j w_j: [..., cols], [cols] -> [...]."""
    return (p @ weights[:, None])[..., 0]


def within(i: Tensor, band: Band) -> Tensor:
    """Whether start <= i < stop: positions [queries] -> [queries] bool."""
    inside = torch.ones_like(i, dtype=torch.bool)
    if band.start is not None:
        inside &= i >= band.start
    if band.stop is not None:
        inside &= i < band.stop
    return inside


def real_queries(i: Tensor, keys: Tensor, first_key: int) -> Tensor:
    """False where the key at a query's own position is padding: [queries], [batch, keys] -> [batch, queries] bool."""
    own = i - first_key
    held = (own >= 0) & (own < keys.shape[1])
    return keys[:, own.clamp(0, keys.shape[1] - 1)] | ~held


def counted_queries(query: Tensor, mask: Mask, keys: int, band: Band) -> Tensor:
    """How many queries `received` averages for each key: [batch, keys] int64."""
    queries = query.shape[2]
    i = torch.arange(queries, device=query.device) + mask.first_query
    counts = within(i, band).expand(query.shape[0], -1)
    if mask.keys is not None:
        counts = counts & real_queries(i, mask.keys, mask.first_key)
    before = torch.nn.functional.pad(counts.long().cumsum(1), (1, 0))  # [batch, queries + 1], counted rows before row i
    own = torch.arange(keys, device=query.device) + mask.first_key - mask.first_query  # the row at the key's position
    low = (own + band.lo).clamp(0, queries)
    high = torch.full_like(own, queries) if band.hi is None else (own + band.hi + 1).clamp(0, queries)
    return (before[:, high] - before[:, low]).clamp(min=0)
