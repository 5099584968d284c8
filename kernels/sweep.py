"""The scores of attention, block by block, as forward, backward and pooling need them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from probe.kernels.blocks import MOST_ROWS, Block, Hiding, blocks
from probe.kernels.contract import Scoring
from probe.kernels.products import linear, linear_serves

P = ParamSpec("P")
R = TypeVar("R")

# The most bytes of scores in hand at once; the weights take the same number again.
BUDGET = {"cpu": 8 << 20}
DEVICE_BUDGET = 256 << 20

# This number of scores keeps a CPU busy; more heads at once would only take more memory.
ENOUGH = {"cpu": 1 << 19}


@cache
def keep_freed_memory() -> None:
    """Make malloc keep what one call frees for the next; the effect lasts as long as the process.

    glibc gives free memory back to the system beyond twice the largest piece that was ever mapped and freed
    (mallopt(3), M_MMAP_THRESHOLD), and every page of it is cleared when it comes again. This piece is as large as all
    that a call holds at once and is never written to, so it costs nothing; other systems' malloc is not affected.
    """
    torch.UntypedStorage(2 * BUDGET["cpu"])


def as_written(compute: Callable[P, R]) -> Callable[P, R]:
    """Return `compute` without gradients, and in the dtypes of its code even under the caller's autocast."""

    @wraps(compute)
    def run(*args: P.args, **options: P.kwargs) -> R:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return compute(*args, **options)

    return run


class Sweep:
    """The scores of one pass over the blocks of a query and a key.

    budget: the most bytes of scores in hand at once, None for the device's.
    """

    def __init__(self, query: Tensor, key: Tensor, scoring: Scoring, budget: int | None = None) -> None:
        self.query, self.key, self.scoring = query, key, scoring
        self.group = query.shape[1] // key.shape[1]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        budget = budget or BUDGET.get(query.device.type, DEVICE_BUDGET)
        self.most = max(1, budget // self.dtype.itemsize)
        self.hiding = Hiding(scoring.mask, min(MOST_ROWS, query.shape[2]), dtype=self.dtype, device=query.device)
        self.buffers: dict[str, Tensor] = {}
        if query.device.type == "cpu":
            keep_freed_memory()

    def blocks(self) -> Iterator[Block]:
        enough = ENOUGH.get(self.query.device.type, self.most)
        return blocks(self.query, self.key, self.scoring.mask, most=self.most, enough=enough)

    def rows(self, block: Block, tensor: Tensor) -> Tensor:
        """Return a block's rows of [batch, heads, queries, width], a KV head's query heads in one: [.., n, width]."""
        return block.of(self.grouped(tensor), rows=3).to(self.dtype).flatten(2, 3).flatten(0, 1)

    def cols(self, block: Block, tensor: Tensor) -> Tensor:
        """Return a block's keys or values of [batch, kv_heads, keys, width]: [.., cols, width]."""
        return block.of(tensor, cols=2).to(self.dtype).flatten(0, 1)

    def zeros(self, *sizes: int) -> Tensor:
        """Return zeros [batch, kv_heads, group, *sizes] in the dtype of the scores."""
        lead = (self.query.shape[0], self.key.shape[1], self.group)
        return torch.zeros(*lead, *sizes, dtype=self.dtype, device=self.query.device)

    def grouped(self, tensor: Tensor) -> Tensor:
        """Return [batch, heads, ...] as [batch, kv_heads, group, ...]."""
        return tensor.unflatten(1, (-1, self.group))

    def whole(self, block: Block, part: Tensor) -> Tensor:
        """Return [.., rows, width] as [batch, kv_heads, group, rows, width] of the block: the inverse of `rows`."""
        batch, kv_heads, rows = (cut.stop - cut.start for cut in (block.batch, block.kv_heads, block.rows))
        return part.view(batch, kv_heads, self.group, rows, part.shape[-1])

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Return memory that the blocks use one after another: fresh pages cost as much as filling them."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.query.device)
        return self.buffers[name][:size].view(shape)

    def product(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """Return left [n, rows, k] @ right [n, k, cols], in the buffer of that name, or in memory of its own."""
        serves = linear_serves(left[0], right[0])
        if serves and left.shape[0] == 1:  # as large a block as comes: no copy of it
            return linear(left[0], right[0])[None]
        found = self.buffer(name, left.shape[0], left.shape[1], right.shape[2])
        if not serves:
            return torch.bmm(left, right, out=found)
        for index, part in enumerate(found):  # the copy costs less than many sizes of memory do
            part.copy_(linear(left[index], right[index]))
        return found

    def scores(self, block: Block) -> Tensor:
        """Return scaled, capped, edited, masked scores in a buffer: [batch, kv_heads, group, rows, cols]."""
        return self.edited(self.capped(block), block)

    def edited(self, s: Tensor, block: Block) -> Tensor:
        """Return the capped scores with the edits and the mask, in place."""
        for edit in self.scoring.edits:
            edit.apply(s, block)
        self.hiding.apply(s, block)
        return s

    def capped(self, block: Block) -> Tensor:
        """Return scaled, capped scores in a buffer: [batch, kv_heads, group, rows, cols]."""
        scale, cap = self.scoring.scale, self.scoring.softcap
        q = self.rows(block, self.query)
        q = torch.mul(q, scale if cap is None else scale / cap, out=self.buffer("queries", *q.shape))
        k = self.cols(block, self.key)
        s = self.product(q, k.transpose(1, 2), "scores")
        if cap is not None:
            s.tanh_().mul_(cap)
        return self.whole(block, s)

    def weights(self, block: Block, s: Tensor, lse: Tensor) -> Tensor:
        """Return p, in the place of s, from the lse [batch, heads, queries] of an earlier sweep."""
        own = block.of(self.grouped(lse), rows=3)
        return s.sub_(own.masked_fill(own.isneginf(), math.inf)[..., None]).exp_()  # a row that sees nothing weighs 0
