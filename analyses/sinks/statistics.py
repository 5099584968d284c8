"""Statistics of attention sinks on tensors: sink rate, value norms, which tokens are sinks in most heads.

Column means and the rules for sinks are in `probe.interventions.sink_rules`, the first token's mass in
`probe.analyses.heads.sink_scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 0.3
"""The column mean above which a head counts in the sink rate (Gu et al. 2024, released code, T = 64 tokens)."""


def sink_rate(column_means: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """Share of heads whose column mean exceeds epsilon, by token: [layers, heads, keys] -> [keys], 0..1."""
    if column_means.ndim != 3:
        raise ValueError(f"column_means must be [layers, heads, keys], got {list(column_means.shape)}")
    return (column_means > epsilon).double().mean((0, 1))


def value_norm_ratio(values: Tensor) -> Tensor:
    """Norm of the first value over the median norm of all others: [kv_heads, keys >= 2, value_dim] -> [kv_heads].

    A small ratio says that a head which attends to the first token does next to nothing.
    """
    if values.ndim != 3 or values.shape[1] < 2:
        raise ValueError(f"values must be [kv_heads, keys >= 2, value_dim], got {list(values.shape)}")
    norms = values.float().norm(dim=-1)
    return norms[:, 0] / norms[:, 1:].median(-1).values


def share_of_heads(found: Tensor) -> tuple[Tensor, Tensor]:
    """By token, the share of heads whose sink it is, and the layers where it is one of most heads.

    found: [layers, heads, keys] bool -> [keys] 0..1, and [keys] int64.
    """
    by_layer = found.double().mean(1)
    return by_layer.mean(0), (by_layer > 0.5).sum(0)


def later_per_head(found: Tensor) -> Tensor:
    """How many sinks each head has beside the first token: [layers, heads, keys] bool -> [layers, heads] int64."""
    return found[..., 1:].sum(-1)


def row_counts(keys: int) -> Tensor:
    """How many queries see each key of a whole prompt: [keys] int64, N - j."""
    return torch.arange(keys, 0, -1)
