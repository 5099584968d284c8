"""Cutting attention into blocks of query rows, each with only the keys that any of its rows may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.contract import Mask

# The score of a hidden key. Finite, so that p * s is 0 and not NaN, and far enough down that exp underflows to 0.
HIDDEN = -1e30

# More rows than this gain no speed. Under a causal mask they waste arithmetic above the diagonal, so short texts have
# blocks half as high.
MOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class Block:
    """One step: some batch rows and KV heads with all their query heads, consecutive queries, consecutive keys."""

    batch: slice
    kv_heads: slice
    rows: slice
    cols: slice

    def of(self, tensor: Tensor, *, rows: int | None = None, cols: int | None = None) -> Tensor:
        """Return the block's part of [batch or 1, kv_heads or 1, ...]; `rows`, `cols` name the dimensions to cut."""
        index = [slice(None)] * tensor.ndim
        for dim, cut in ((0, self.batch), (1, self.kv_heads)):
            if tensor.shape[dim] != 1:
                index[dim] = cut
        for dim, cut in ((rows, self.rows), (cols, self.cols)):
            if dim is not None:
                index[dim] = cut
        return tensor[tuple(index)]


def blocks(query: Tensor, key: Tensor, mask: Mask, *, most: int, enough: int | None = None) -> Iterator[Block]:
    """Yield the blocks that together hold every visible pair, each with at most about `most` scores.

    enough: a block takes in further heads or texts until it has this number of scores; None for no limit but `most`.
    Every query row is in a block, even if no key is visible to it. All blocks of one KV head come together, while its
    keys are in the cache. Under a causal mask the largest block comes first, so that the others fit in its memory.
    """
    batch, heads, queries, _ = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    group = heads // kv_heads
    short = mask.causal and queries < 3 * MOST_ROWS
    rows = MOST_ROWS // 2 if short else MOST_ROWS  # and powers of two below, so that most blocks start and end evenly
    while rows > 1 and group * rows * _width(rows, queries, keys, mask) > most:
        rows //= 2
    rows = min(rows, queries)
    size = group * rows * _width(rows, queries, keys, mask)  # of one KV head's block
    at_once = max(1, most // size)
    if enough is not None:
        at_once = min(at_once, -(-enough // size))
    batch_step, kv_step = max(1, at_once // kv_heads), min(at_once, kv_heads)
    for b in range(0, batch, batch_step):
        for h in range(0, kv_heads, kv_step):
            for start in reversed(range(0, queries, rows)):
                stop = min(start + rows, queries)
                yield Block(
                    batch=slice(b, min(b + batch_step, batch)),
                    kv_heads=slice(h, min(h + kv_step, kv_heads)),
                    rows=slice(start, stop),
                    cols=visible_cols(start, stop, keys, mask),
                )


def _width(rows: int, queries: int, keys: int, mask: Mask) -> int:
    """Return the most keys that a block of `rows` rows may need."""
    if not mask.causal:
        return keys
    width = max(1, min(keys, queries + mask.ahead))
    return width if mask.window is None else min(width, mask.window + rows - 1)


def visible_cols(start: int, stop: int, keys: int, mask: Mask) -> slice:
    """Return the key indices that the query rows [start, stop) may see by position; other masks may hide more."""
    first, last = 0, keys
    if mask.window is not None:
        first = start + mask.ahead - mask.window + 1
    if mask.causal:
        last = stop + mask.ahead
    first = min(max(first, 0), keys)
    return slice(first, min(max(last, first), keys))


def visible_pairs(rows: slice, cols: slice, mask: Mask, device: torch.device) -> Tensor:
    """Return True where the query may attend to the key: [batch or 1, heads or 1, rows, cols] bool."""
    i = torch.arange(rows.start, rows.stop, device=device)[:, None] + mask.first_query
    j = torch.arange(cols.start, cols.stop, device=device) + mask.first_key
    visible = torch.ones(len(i), len(j), dtype=torch.bool, device=device)
    if mask.causal:
        visible &= j <= i
    if mask.window is not None:
        visible &= i - j < mask.window
    visible = visible[None, None]
    if mask.keys is not None:
        visible = visible & mask.keys[:, None, None, cols]
    if mask.pairs is not None:
        visible = visible & mask.pairs[:, :, rows, cols]
    return visible


class Hiding:
    """Lowers the scores of hidden keys to HIDDEN. By position only the edges of a block can be hidden."""

    def __init__(self, mask: Mask, most_rows: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.mask = mask
        square = torch.full((most_rows, most_rows), HIDDEN, dtype=dtype, device=device)
        self.after, self.before = square.triu(1), square.tril(-1)

    def apply(self, scores: Tensor, block: Block) -> None:
        """Lower the hidden scores of the block in place: [batch, kv_heads, group, rows, cols]."""
        rows, cols = block.rows, block.cols
        size, own = rows.stop - rows.start, rows.start + self.mask.ahead  # the first row's own key index
        if self.mask.causal:
            _add(scores, cols, own, self.after[:size, :size])
        if self.mask.window is not None:
            _add(scores, cols, own - self.mask.window + 1, self.before[:size, :size])
        hidden = []
        if self.mask.keys is not None:
            hidden.append(~block.of(self.mask.keys[:, None, None, None, :], cols=4))
        if self.mask.pairs is not None:
            hidden.append(~block.of(grouped(self.mask.pairs, scores.shape[2]), rows=3, cols=4))
        for pairs in hidden:  # adding is several times faster than masked_fill_ on CPUs
            scores.add_(pairs.to(scores.dtype).mul_(HIDDEN))


def _add(scores: Tensor, cols: slice, start: int, square: Tensor) -> None:
    """Add to the scores, whose columns are `cols`, a square whose first column belongs at `start`."""
    first, last = max(start, cols.start), min(start + square.shape[1], cols.stop)
    if first < last:
        scores[..., first - cols.start : last - cols.start].add_(square[:, first - start : last - start])


def grouped(tensor: Tensor, group: int) -> Tensor:
    """Return [batch, heads or 1, ...] as [batch, kv_heads or 1, group or 1, ...]."""
    return tensor[:, None] if tensor.shape[1] == 1 else tensor.unflatten(1, (-1, group))


def may_be_blind(query: Tensor, key: Tensor, mask: Mask) -> bool:
    """Return whether some query might see no key at all, judged by the form of the mask."""
    before_all = mask.causal and mask.ahead < 0
    past_all = mask.window is not None and mask.ahead + query.shape[2] - mask.window >= key.shape[2]
    return before_all or past_all or mask.keys is not None or mask.pairs is not None
