"""Attention and its statistics on CPUs, in C++ that is built once on the user's machine (`build.py`).

Faster than torch's own attention, which returns no statistics. All of it is float32; half-precision inputs are widened.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.blocks import HIDDEN
from probe.kernels.contract import Request, Scoring, Statistics
from probe.kernels.maps import pool, tile
from probe.kernels.native.build import unavailable
from probe.kernels.sweep import as_written

__all__ = ["attend", "pool", "refusal", "tile"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A block's scores, [rows, keys] float32, should stay in the second-level cache of one core.
ROWS, LONG, LONG_ROWS = 64, 6144, 32
# No limit: further than any text is long.
FAR = 1 << 40


def refusal(query: Tensor, key: Tensor, **_: object) -> str | None:
    if query.device.type != "cpu":
        return f"runs on CPUs, not on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"computes in float32, not in {query.dtype}"
    return unavailable()


@as_written
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scoring: Scoring,
    sinks: Tensor | None,
    request: Request,
    rows: int | None = None,
) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim] and the statistics that `request` names.

    rows: the most query rows at once, None for what suits the cache.
    """
    batch, heads, queries, _ = query.shape
    keys, mask, band = key.shape[2], scoring.mask, request.received
    # heads side by side in memory, as models want them next
    output = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    found: dict[str, Tensor] = {}
    for name, sizes in replace(request, lse=True).row_sizes(value.shape[3]).items():
        dtype = torch.int64 if name == "top_key" else torch.float32
        found[name] = torch.empty(batch, heads, queries, *sizes, dtype=dtype)
    counted = None
    if band is not None:
        found["received"] = torch.empty(batch, heads, keys)
        counted = counted_queries(queries, mask, band, query.device)
        found["received_rows"] = queries_in_band(counted, keys, mask.ahead, band).expand(batch, -1)
    tiles = (1, 1)
    if request.pooled is not None:
        tiles = tuple(-(-size // most) for size, most in zip((queries, keys), request.pooled, strict=True))
        found["pooled"] = torch.zeros(batch, heads, -(-queries // tiles[0]), -(-keys // tiles[1]))
    torch.ops.probe_native.attend(
        query,
        key,
        value,
        mask.causal,
        mask.window or 0,
        mask.ahead,
        mask.first_key,
        None if mask.keys is None else (~mask.keys).float().mul_(HIDDEN),
        _whole(mask.pairs, batch, heads),
        scoring.scale,
        scoring.softcap or 0.0,
        None if sinks is None else sinks.float().contiguous(),
        output,
        found["lse"],
        found.get("entropy"),
        found.get("distance"),
        found.get("windowed_distance"),
        request.windowed_distance or 0,
        found.get("top_weight"),
        found.get("top_key"),
        _whole(request.sets, batch, heads),
        found.get("mass"),
        found.get("partial"),
        found.get("received"),
        None if counted is None else counted.expand(batch, -1).contiguous(),
        0 if band is None else band.lo,
        FAR if band is None or band.hi is None else band.hi,
        found.get("pooled"),
        *tiles,
        rows or (ROWS if keys <= LONG else LONG_ROWS),
    )
    if band is not None:
        found["received"] /= found["received_rows"][:, None]
    if not request.lse:
        del found["lse"]
    return output, Statistics(**found)


def _whole(tensor: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """Return [batch or 1, heads or 1, ..., keys] as [batch, heads, ..., keys], copied only if keys lie apart."""
    if tensor is None:
        return None
    tensor = tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
    return tensor.expand(batch, heads, -1, -1)
