"""The scores of attention, block by block, as forward, backward and pooling need them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from probe.kernels.blocks import MOST_ROWS, Block, Hiding, blocks
from probe.kernels.contract import Mask
from probe.kernels.edits import Edit

P = ParamSpec("P")
R = TypeVar("R")

# The most bytes of scores in hand at once; the weights take as many again.
BUDGET = {"cpu": 8 << 20}
DEVICE_BUDGET = 256 << 20


def as_written(compute: Callable[P, R]) -> Callable[P, R]:
    """Without gradients, and in the dtypes that stand in the code, though the caller may be under autocast."""

    @wraps(compute)
    def run(*args: P.args, **options: P.kwargs) -> R:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return compute(*args, **options)

    return run


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores are made; `budget` is the most bytes of them in hand at once, None for what suits the device."""

    mask: Mask
    scale: float
    softcap: float | None
    budget: int | None = None
    edits: tuple[Edit, ...] = ()


class Sweep:
    """The scores of one pass over the blocks of a query and a key."""

    def __init__(self, query: Tensor, key: Tensor, scoring: Scoring) -> None:
        self.query, self.key = query, key
        self.mask, self.scale, self.softcap = scoring.mask, scoring.scale, scoring.softcap
        self.edits = scoring.edits
        self.group = query.shape[1] // key.shape[1]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        budget = scoring.budget or BUDGET.get(query.device.type, DEVICE_BUDGET)
        self.most = max(1, budget // self.dtype.itemsize)
        self.hiding = Hiding(self.mask, min(MOST_ROWS, query.shape[2]), dtype=self.dtype, device=query.device)
        # the first blocks of a causal sweep are the smallest: room for the largest, and for no more than there is
        self.room = min(self.most, query.shape[0] * query.shape[1] * min(MOST_ROWS, query.shape[2]) * key.shape[2])
        self.buffers: dict[str, Tensor] = {}

    def blocks(self) -> Iterator[Block]:
        return blocks(self.query, self.key, self.mask, most=self.most)

    def rows(self, block: Block, tensor: Tensor) -> Tensor:
        """A block's rows of [batch, heads, queries, width], a KV head's query heads in one: [.., rows, width]."""
        return block.of(self.grouped(tensor), rows=3).to(self.dtype).flatten(2, 3).flatten(0, 1)

    def cols(self, block: Block, tensor: Tensor) -> Tensor:
        """A block's keys or values of [batch, kv_heads, keys, width]: [.., cols, width]."""
        return block.of(tensor, cols=2).to(self.dtype).flatten(0, 1)

    def grouped(self, tensor: Tensor) -> Tensor:
        """[batch, heads, ...] as [batch, kv_heads, group, ...]."""
        return tensor.unflatten(1, (-1, self.group))

    def whole(self, block: Block, part: Tensor) -> Tensor:
        """[.., rows, width] as [batch, kv_heads, group, rows, width] of the block: the inverse of `rows`."""
        batch, kv_heads, rows = (cut.stop - cut.start for cut in (block.batch, block.kv_heads, block.rows))
        return part.view(batch, kv_heads, self.group, rows, part.shape[-1])

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Memory that the blocks use one after another: fresh pages cost as much as filling them."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(max(size, self.room), dtype=self.dtype, device=self.query.device)
        return self.buffers[name][:size].view(shape)

    def scores(self, block: Block) -> Tensor:
        """Scaled, capped, edited scores, HIDDEN where masked: [batch, kv_heads, group, rows, cols], in a buffer."""
        return self.edited(self.capped(block), block)

    def edited(self, s: Tensor, block: Block) -> Tensor:
        """Capped scores with the edits and the mask, in their place."""
        for edit in self.edits:
            edit.apply(s, block)
        self.hiding.apply(s, block)
        return s

    def capped(self, block: Block) -> Tensor:
        """Scaled, capped scores: [batch, kv_heads, group, rows, cols], in a buffer."""
        cap = self.softcap
        q = self.rows(block, self.query) * (self.scale if cap is None else self.scale / cap)
        k = self.cols(block, self.key)
        s = torch.bmm(q, k.transpose(1, 2), out=self.buffer("scores", q.shape[0], q.shape[1], k.shape[1]))
        if cap is not None:
            s.tanh_().mul_(cap)
        return self.whole(block, s)

    def weights(self, block: Block, s: Tensor, lse: Tensor) -> Tensor:
        """p, in the place of s, from the lse [batch, heads, queries] of an earlier sweep."""
        own = block.of(self.grouped(lse), rows=3)
        return s.sub_(own.masked_fill(own.isneginf(), math.inf)[..., None]).exp_()  # a row that sees nothing weighs 0
