"""Statistics of attention from blocks of whole rows; what the keys receive is added up as the blocks go by."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace

import torch
from torch import Tensor

from probe.kernels.blocked.received import Received
from probe.kernels.blocks import HIDDEN, Block, grouped
from probe.kernels.contract import Request, Statistics
from probe.kernels.pooled import PooledMap
from probe.kernels.sweep import Sweep


class Tally:
    """The statistics that a request names, filled block by block; `finish` hands them over.

    Until then they are [batch, kv_heads, group, queries, ...], in the dtype of the scores.
    """

    def __init__(self, sweep: Sweep, value: Tensor, request: Request) -> None:
        self.mask, self.request = sweep.scoring.mask, request
        lead = (value.shape[0], value.shape[1], sweep.group, sweep.query.shape[2])
        self.rows = {
            name: value.new_empty(*lead, *sizes, dtype=torch.int64 if name == "top_key" else sweep.dtype)
            for name, sizes in replace(request, lse=False).row_sizes(value.shape[3]).items()
        }
        if request.sets is not None:
            self.member = grouped(request.sets, sweep.group).transpose(-1, -2)  # [.., keys, sets]
            self.columns = Columns(request.sets)
            if request.partial:
                self.columns_of = [Columns(request.sets[:, :, i : i + 1]) for i in range(request.sets.shape[2])]
        self.received = None if request.received is None else Received(sweep, request.received)
        self.pooled = None if request.pooled is None else PooledMap(sweep, request.pooled)

    def add(
        self,
        block: Block,
        p: Tensor,
        s: Tensor,
        v: Tensor,
        *,
        best: tuple[Tensor, Tensor] | None,
        peak: Tensor,
        spread: Tensor,
        total: Tensor | None,
    ) -> None:
        """Add one block with at least one key; s is overwritten.

        p, s: weights and masked scores, [batch, kv_heads, group, rows, cols] of the block; v: [batch, kv_heads, cols,
        value_dim]. Of each row: best = its largest scores and their columns, where asked for; peak = max s;
        spread = lse - peak; total = sum p, None for 1.
        """
        row = {name: block.of(tensor, rows=3) for name, tensor in self.rows.items()}
        if best is not None:
            score, column = best
            found = column.shape[-1]
            row["top_weight"][..., :found] = p.gather(-1, column)
            row["top_weight"][..., found:] = 0
            row["top_key"][..., :found] = (column + (block.cols.start + self.mask.first_key)).masked_fill_(
                score <= HIDDEN / 2, -1
            )
            row["top_key"][..., found:] = -1
        if "entropy" in row:
            # shifted by the peak, so that nothing cancels in a row whose one weight is nearly 1
            moment = s.sub_(peak[..., None]).mul_(p).sum(-1)
            torch.sub(spread if total is None else spread * total, moment, out=row["entropy"])
        if "distance" in row or "windowed_distance" in row:
            self._distances(block, p, s, row)
        if "mass" in row:
            columns = self.columns.within(block.cols)
            member = block.of(self.member, cols=3)
            row["mass"].copy_(product(pick(p, 4, columns), pick(member, 3, columns).to(p.dtype)))
        if "partial" in row:
            for index, columns_of in enumerate(self.columns_of):
                columns = columns_of.within(block.cols)
                member = pick(block.of(self.member[..., index : index + 1], cols=3), 3, columns)
                row["partial"][..., index, :] = product(pick(p, 4, columns), member * pick(v, 2, columns)[:, :, None])
        if self.received is not None:
            self.received.add(block, p)
        if self.pooled is not None:
            self.pooled.add(block, p)

    def skip(self, block: Block) -> None:
        """Fill in the rows of a block without keys."""
        for name, tensor in self.rows.items():
            block.of(tensor, rows=3).fill_(-1 if name == "top_key" else 0)

    def finish(self, lse: Tensor, blind: Tensor | None) -> Statistics:
        """Return the statistics, float32; lse and blind (rows that see no key) are [batch, heads, queries]."""
        found = {"lse": lse} if self.request.lse else {}
        for name, tensor in self.rows.items():
            found[name] = tensor.flatten(1, 2)
            if blind is not None and name in ("entropy", "distance", "windowed_distance"):
                found[name].masked_fill_(blind, math.nan)
            if blind is not None and name == "mass":
                found[name].masked_fill_(blind[..., None], math.nan)
        if self.received is not None:
            found["received"] = self.received.mean().flatten(1, 2)
            found["received_rows"] = self.received.rows
        if self.pooled is not None:
            found["pooled"] = self.pooled.map.flatten(1, 2)
        return Statistics(**{name: t.float() if t.is_floating_point() else t for name, t in found.items()})

    def _distances(self, block: Block, p: Tensor, scratch: Tensor, row: dict[str, Tensor]) -> None:
        """Write the distances: keys near the rows are weighed pair by pair, those further back all at once.

        Further back, i - j is the distance to the first row, which is positive, and the rows from there to i: no term
        is negative, so nothing cancels, wherever the block stands.
        """
        window = self.request.windowed_distance
        start, stop = block.cols.start, block.cols.stop
        size = block.rows.stop - block.rows.start
        first = block.rows.start + self.mask.ahead  # the first row's own key index
        near = min(max(first - (window or 0) + 1, start), stop)
        below = torch.arange(size, dtype=p.dtype, device=p.device)
        away = below[:, None] - torch.arange(near - first, stop - first, dtype=p.dtype, device=p.device)
        back, close = p[..., : near - start], p[..., near - start :]
        mass = back.sum(-1)
        if "distance" in row:
            steps = torch.arange(first - start, first - near, -1, dtype=p.dtype, device=p.device)
            distance = weighed(close, away, scratch) + below * mass
            torch.add(distance, (back @ steps[:, None])[..., 0], out=row["distance"])
        if window is not None:
            near_distance = weighed(close, away.clamp_(max=window), scratch)
            torch.add(near_distance, mass, alpha=window, out=row["windowed_distance"])


class Columns:
    """The keys that belong to any of some sets, [batch or 1, heads or 1, sets, keys]."""

    def __init__(self, sets: Tensor) -> None:
        self.at = sets.flatten(0, 2).any(0).nonzero()[:, 0]
        self.sorted = self.at.tolist()

    def within(self, cols: slice) -> Tensor | None:
        """Return the members among the key indices `cols`, counted from its start; None where all keys are as fast."""
        first, last = bisect_left(self.sorted, cols.start), bisect_left(self.sorted, cols.stop)
        return self.at[first:last] - cols.start if 2 * (last - first) < cols.stop - cols.start else None


def pick(tensor: Tensor, dim: int, columns: Tensor | None) -> Tensor:
    """Return the columns of one dimension, None for all."""
    return tensor if columns is None else tensor.index_select(dim, columns)


def product(p: Tensor, right: Tensor) -> Tensor:
    """Return [batch, kv_heads, group, rows, cols] @ [batch or 1, kv_heads or 1, group or 1, cols, width]."""
    if right.shape[2] != 1:
        return p @ right
    return (p.flatten(2, 3) @ right[:, :, 0]).unflatten(2, p.shape[2:4])  # one product for the whole group


def weighed(p: Tensor, weights: Tensor, scratch: Tensor) -> Tensor:
    """Return sum_j p_ij w_ij: [.., rows, cols], [rows, cols] -> [.., rows]; overwrites p.numel() of scratch."""
    return torch.mul(p, weights, out=scratch.view(-1)[: p.numel()].view(p.shape)).sum(-1)
