"""The types that all implementations share: which pairs are visible, what is requested, what is returned.

Axes: batch, heads, kv_heads, queries, keys, head_dim, value_dim, sets. Logarithms are natural. Positions are absolute:
query row i stands at `first_query + i`, key column j at `first_key + j`, so a cached decode step and a full pass give
the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from probe.kernels.edits import Edit


@dataclass(frozen=True, slots=True)
class Mask:
    """The keys that each query may attend to; a pair is visible when every condition that is set holds.

    causal: key position <= query position.
    window: query position - key position < window, so a window of w shows w keys, the query's own included.
    keys: [batch, keys] bool, False for padding.
    pairs: [batch or 1, heads or 1, queries, keys] bool, any further restriction.
    """

    causal: bool = True
    window: int | None = None
    keys: Tensor | None = None
    pairs: Tensor | None = None
    first_query: int = 0
    first_key: int = 0

    @property
    def ahead(self) -> int:
        """Return the key column at the position of query row 0."""
        return self.first_query - self.first_key


@dataclass(frozen=True, slots=True)
class Scoring:
    """The way from q . k to a score: times `scale`, capped, edited, masked (`attend` says more of each)."""

    mask: Mask
    scale: float
    softcap: float | None = None
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The pairs (i, j) that `received` averages: i in [start, stop), lo <= i - j <= hi; None is no limit."""

    start: int | None = None
    stop: int | None = None
    lo: int = 0
    hi: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The statistics to compute; `Statistics` defines each. A statistic that is not requested costs nothing.

    windowed_distance: the window W, in tokens.
    top: how many of the largest weights of each row to return.
    sets: [batch or 1, heads or 1, sets <= 32, keys] bool; requests `mass`, and with `partial` the partial sums.
    received: the band of pairs that the mean is over.
    pooled: the largest number of (rows, columns) of the pooled map.
    """

    lse: bool = False
    entropy: bool = False
    distance: bool = False
    windowed_distance: int | None = None
    top: int = 0
    sets: Tensor | None = None
    partial: bool = False
    received: Band | None = None
    pooled: tuple[int, int] | None = None

    def row_sizes(self, value_dim: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the sizes beyond [batch, heads, queries] of each row statistic that is asked for."""
        sizes: dict[str, tuple[int, ...]] = {name: () for name in ("lse", "entropy", "distance") if getattr(self, name)}
        if self.windowed_distance is not None:
            sizes["windowed_distance"] = ()
        if self.top:
            sizes |= {"top_weight": (self.top,), "top_key": (self.top,)}
        if self.sets is not None:
            sizes["mass"] = self.sets.shape[2:3]
            if self.partial:
                sizes["partial"] = (self.sets.shape[2], value_dim)
        return sizes

    def __bool__(self) -> bool:
        return self.sets is not None or replace(self, sets=None) != Request()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The statistics that were requested, and None for the others; float32 unless noted, without gradients.

    p is the softmax of the scaled, masked scores s, i a query, j a key, both absolute positions.

    lse: [batch, heads, queries], log sum_j exp s_ij; includes the learned sink logit where there is one.
    entropy: [batch, heads, queries], -sum_j p_ij log p_ij, in nats, over the real keys.
    distance: [batch, heads, queries], sum_j p_ij (i - j), in tokens.
    windowed_distance: [batch, heads, queries], sum_j p_ij min(i - j, W), in tokens.
    top_weight, top_key: [batch, heads, queries, k], the largest p_ij and their positions (int64); ties to the lower j;
        where fewer than k keys are visible, weight 0 and key -1.
    mass: [batch, heads, queries, sets], sum of p_ij over each key set.
    partial: [batch, heads, queries, sets, value_dim], sum over each key set of p_ij v_j.
    received: [batch, heads, keys], mean of p_ij over the queries of the band that are not padding, NaN without any.
    received_rows: [batch, keys] int64, the number of queries that the mean is over.
    pooled: [batch, heads, rows, cols], max of p_ij over tiles of ceil(queries / rows) x ceil(keys / cols).

    A query that sees no key has output 0, lse -inf, entropy, distances and mass NaN, top_weight 0 and top_key -1, and
    contributes 0 to received and pooled.
    """

    lse: Tensor | None = None
    entropy: Tensor | None = None
    distance: Tensor | None = None
    windowed_distance: Tensor | None = None
    top_weight: Tensor | None = None
    top_key: Tensor | None = None
    mass: Tensor | None = None
    partial: Tensor | None = None
    received: Tensor | None = None
    received_rows: Tensor | None = None
    pooled: Tensor | None = None

    def detach(self) -> Statistics:
        """Return the same numbers, cut off from the graph of gradients."""
        found = {field.name: getattr(self, field.name) for field in fields(Statistics)}
        return replace(self, **{name: t.detach() for name, t in found.items() if t is not None})


ROW_STATISTICS = ("lse", "entropy", "distance", "windowed_distance", "top_weight", "top_key", "mass", "partial")
"""The fields of `Statistics` that are [batch, heads, queries, ...]."""
