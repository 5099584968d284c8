"""Edits of the attention pattern: key sets that weigh more or less in a row, and rows that are given outright.

An edit changes the scaled, capped scores before softmax, so the output and every statistic describe the edited
attention, with no map. A key that the mask hides stays hidden.

Reweighting: s_ij <- s_ij + log_ig for every set g that holds j. Softmax then multiplies the set's share of the row by
    exp(log_ig) and normalises. Where the factors keep the row's sum, as those of a redistribution do, lse is unchanged.
Pinned:      s_ij <- log_ij, whatever query and key are: the row of the pattern is exp(log_i), normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from probe.kernels.blocks import HIDDEN, Block, grouped

E = TypeVar("E", "Reweighting", "Pinned")


@dataclass(frozen=True, slots=True, eq=False)
class Reweighting:
    """Key sets that weigh more or less in each row.

    sets: [batch or 1, heads or 1, sets, keys] bool. log: [batch or 1, heads or 1, queries, sets], log factors; -inf
    removes the set.
    """

    sets: Tensor
    log: Tensor

    def apply(self, scores: Tensor, block: Block) -> None:
        """Edit the scores [batch, kv_heads, group, rows, cols] of the block in place."""
        group = scores.shape[2]
        log = block.of(grouped(self.log, group), rows=3).to(scores.dtype).clamp(min=HIDDEN)
        for log_of, member in zip(log.unbind(-1), block.of(grouped(self.sets, group), cols=4).unbind(3), strict=True):
            columns = member.flatten(0, 2).any(0).nonzero()[:, 0]
            if 2 * len(columns) < member.shape[-1]:  # few keys: touch no others
                change = log_of[..., None] * member[..., columns].to(scores.dtype)[..., None, :]
                scores.index_add_(4, columns, change.expand(*scores.shape[:-1], -1))
            else:
                scores.add_(log_of[..., None] * member.to(scores.dtype)[..., None, :])

    def forget(self, d_score: Tensor, block: Block) -> None:
        """Do nothing: a factor leaves the slope of a score as it is."""

    def of_heads(self, heads: list[int]) -> Reweighting:
        """Return the edit for some of the heads."""
        return replace(self, sets=of_heads(self.sets, heads), log=of_heads(self.log, heads))


@dataclass(frozen=True, slots=True, eq=False)
class Pinned:
    """Rows whose pattern is given outright.

    rows: [batch or 1, n] int64 query indices. log: [batch or 1, heads or 1, n, keys], log weights that replace scores.
    """

    rows: Tensor
    log: Tensor

    def apply(self, scores: Tensor, block: Block) -> None:
        """Edit the scores [batch, kv_heads, group, rows, cols] of the block in place."""
        log = block.of(grouped(self.log, scores.shape[2]), cols=4).to(scores.dtype).clamp(min=HIDDEN)
        for texts, here, own in self._inside(block):
            scores[texts, :, :, own] = (log if log.shape[0] == 1 else log[texts])[..., here, :]

    def forget(self, d_score: Tensor, block: Block) -> None:
        """Clear the slopes of pinned rows in place: they depend on no query and no key."""
        for texts, _, own in self._inside(block):
            d_score[texts, :, :, own] = 0

    def of_heads(self, heads: list[int]) -> Pinned:
        """Return the edit for some of the heads."""
        return replace(self, log=of_heads(self.log, heads))

    def _inside(self, block: Block) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Return the block's texts with the same rows, which of the rows lie in the block, and where in it."""
        for text, rows in enumerate(block.of(self.rows[:, None])[:, 0]):
            here = ((rows >= block.rows.start) & (rows < block.rows.stop)).nonzero()[:, 0]
            if len(here):
                texts = slice(None) if self.rows.shape[0] == 1 else slice(text, text + 1)
                yield texts, here, rows[here] - block.rows.start


Edit = Reweighting | Pinned


def of_heads(tensor: Tensor, heads: list[int]) -> Tensor:
    """Return the part of [batch, heads or 1, ...] for some of the heads."""
    return tensor if tensor.shape[1] == 1 else tensor[:, heads]
