"""Torch's own attention under a `Mask`, for calls that ask for no statistic: it returns none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probe.kernels.blocks import visible_cols
from probe.kernels.contract import Mask, Request, Statistics

# Query rows a time where a mask tensor is needed, so that it never has queries x keys elements.
ROWS = 512

# torch's own backward pass serves
DIFFERENTIABLE = True


def refusal(
    query: Tensor,
    key: Tensor,
    *,
    value: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    request: Request | None = None,
    mask: Mask | None = None,
) -> str | None:
    if request:
        return "returns no statistics"
    if softcap is not None or sinks is not None:
        return "has neither soft-capping nor learned sinks"
    if value is not None and value.shape[3] != key.shape[3]:
        return "builds the whole map where value and key differ in width"
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    request: Request | None = None,
) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim], 0 for a query that sees no key, and no statistics."""
    return _output(query, key, value, mask, scale), Statistics()


def _output(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    ahead = mask.first_query - mask.first_key
    unwindowed = mask.window is None or mask.window >= queries + ahead
    if unwindowed and mask.keys is None and mask.pairs is None:
        seen = visible_cols(0, queries, keys, mask).stop
        if seen and (not mask.causal or ahead >= seen - 1):
            return _sdpa(query, key[:, :, :seen], value[:, :, :seen], None, scale)
        if ahead == 0 and seen == queries:
            return _sdpa(query, key[:, :, :seen], value[:, :, :seen], None, scale, is_causal=True)
    parts = []
    for start in range(0, queries, ROWS):
        stop = min(start + ROWS, queries)
        cols = visible_cols(start, stop, keys, mask)
        if cols.start == cols.stop:
            parts.append(query.new_zeros(*query.shape[:2], stop - start, value.shape[3]))
            continue
        visible = visible_pairs(slice(start, stop), cols, mask, query.device)
        parts.append(_sdpa(query[:, :, start:stop], key[:, :, cols], value[:, :, cols], visible, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


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


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float, *, is_causal: bool = False
) -> Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        scale=scale,
        is_causal=is_causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )
