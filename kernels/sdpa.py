"""Torch's own attention under a `Mask`, for calls that ask for no statistic: it returns none."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probe.kernels.blocks import visible_cols, visible_pairs
from probe.kernels.contract import Mask, Request, Scoring, Statistics

# Query rows a time where a mask tensor is needed, so that it never has queries x keys elements.
ROWS = 512

# torch's own backward pass serves
DIFFERENTIABLE = True


def refusal(
    query: Tensor,
    key: Tensor,
    *,
    value: Tensor | None = None,
    scoring: Scoring | None = None,
    sinks: Tensor | None = None,
    request: Request | None = None,
) -> str | None:
    if request:
        return "returns no statistics"
    if (scoring and scoring.softcap is not None) or sinks is not None:
        return "has neither soft-capping nor learned sinks"
    if value is not None and value.shape[3] != key.shape[3]:
        return "builds the whole map where value and key differ in width"
    return None


def attend(query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring, **_: object) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim], 0 for a query that sees no key, and no statistics."""
    return _output(query, key, value, scoring.mask, scoring.scale), Statistics()


def _output(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float) -> Tensor:
    sdpa = partial(scaled_dot_product_attention, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    queries, keys = query.shape[2], key.shape[2]
    unwindowed = mask.window is None or mask.window >= queries + mask.ahead
    if unwindowed and mask.keys is None and mask.pairs is None:
        seen = visible_cols(0, queries, keys, mask).stop
        if seen and (not mask.causal or mask.ahead >= seen - 1):
            return sdpa(query, key[:, :, :seen], value[:, :, :seen])
        if mask.ahead == 0 and seen == queries:
            return sdpa(query, key[:, :, :seen], value[:, :, :seen], is_causal=True)
    parts = []
    for start in range(0, queries, ROWS):
        stop = min(start + ROWS, queries)
        cols = visible_cols(start, stop, keys, mask)
        if cols.start == cols.stop:
            parts.append(query.new_zeros(*query.shape[:2], stop - start, value.shape[3]))
            continue
        visible = visible_pairs(slice(start, stop), cols, mask, query.device)
        parts.append(sdpa(query[:, :, start:stop], key[:, :, cols], value[:, :, cols], attn_mask=visible))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
