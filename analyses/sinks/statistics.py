"""Statistics of attention sinks on tensors: sink rate, value norms, which tokens are sinks in most heads.

Column means and the rules for sinks are in `probe.interventions.sink_rules`, the first token's mass in
`probe.analyses.heads.sink_scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from probe.analyses.sinks.settings import EPSILON


def sink_rate(column_means: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """Return the share of heads whose column mean exceeds epsilon, by token: [layers, heads, keys] -> [keys], 0..1."""
    if column_means.ndim != 3:
        raise ValueError(f"column_means must be [layers, heads, keys], got {list(column_means.shape)}")
    return (column_means > epsilon).double().mean((0, 1))


def value_norm_ratio(values: Tensor) -> Tensor:
    """Return the first value's norm over the median norm of the others: [kv_heads, keys >= 2, value_dim] -> [kv_heads].

    A small ratio says that a head which attends to the first token adds little to the stream.
    """
    if values.ndim != 3 or values.shape[1] < 2:
        raise ValueError(f"values must be [kv_heads, keys >= 2, value_dim], got {list(values.shape)}")
    norms = values.float().norm(dim=-1)
    return norms[:, 0] / norms[:, 1:].median(-1).values


def share_of_heads(found: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each token the share of heads whose sink it is, and how many layers have it in most heads.

    found: [layers, heads, keys] bool -> [keys] 0..1, and [keys] int64.
    """
    by_layer = found.double().mean(1)
    return by_layer.mean(0), (by_layer > 0.5).sum(0)


def later_per_head(found: Tensor) -> Tensor:
    """Return the number of sinks of each head beside the first token: [layers, heads, keys] bool -> [layers, heads]."""
    return found[..., 1:].sum(-1)


def row_counts(keys: int) -> Tensor:
    """Return the number of queries that see each key of a whole prompt: [keys] int64, N - j."""
    return torch.arange(keys, 0, -1)
