"""Attention and its statistics in Triton: NVIDIA GPUs since compute capability 8.0, AMD's, and slowly any CPU.

The forward pass leaves the output, lse and the statistics of rows. Statistics of keys or of the map as a whole
(received, pooled), weights after the largest and partial sums are further sweeps, from the lse of the first.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.kernels.contract import Request, Scoring, Statistics
from probe.kernels.sweep import as_written

if TYPE_CHECKING:
    from probe.kernels.triton.tiles import Tiles

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256
OLDEST = (8, 0)


def refusal(query: Tensor, key: Tensor, *, value: Tensor | None = None, **_: object) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed"
    if query.dtype not in DTYPES:
        return f"computes in float32, not in {query.dtype}"
    width = max(query.shape[3], 0 if value is None else value.shape[3])
    if width > WIDEST:
        return f"has no tiles for heads wider than {WIDEST}, got {width}"
    if not query.is_cuda:
        if query.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return f"runs on GPUs, not on {query.device.type}; with TRITON_INTERPRET=1 set, slowly on a CPU"
    capability = torch.cuda.get_device_capability(query.device)
    if torch.version.hip is None and capability < OLDEST:
        return f"needs compute capability {OLDEST[0]}.{OLDEST[1]}, got {capability[0]}.{capability[1]}"
    return None


def by_name_only(query: Tensor) -> str | None:
    return None if query.is_cuda else "runs in an interpreter here, for whoever asks for it by name"


@as_written
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scoring: Scoring,
    sinks: Tensor | None,
    request: Request,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim] and the statistics that `request` names.

    tiles: how to launch the sweeps over a row's keys; None for what suits the device.
    """
    from probe.kernels.triton import columns, launch, pooled

    later = request.partial or request.received is not None or request.pooled is not None
    first = replace(request, lse=request.lse or later, top=min(request.top, 1))
    with _on(query):
        output, found = launch.forward(query, key, value, scoring=scoring, sinks=sinks, request=first, tiles=tiles)
        lse = found.get("lse", output)
        if request.top > 1:
            found |= launch.top(query, key, found["top_weight"], k=request.top, scoring=scoring, tiles=tiles)
        if request.partial:
            found["partial"] = launch.partial(query, key, value, lse, request.sets, scoring=scoring, tiles=tiles)
        if request.received is not None:
            both = columns.received(query, key, lse, band=request.received, scoring=scoring)
            found["received"], found["received_rows"] = both
        if request.pooled is not None:
            found["pooled"] = pooled.pool(query, key, lse, shape=request.pooled, scoring=scoring)
    if not request.lse:
        found.pop("lse", None)
    return output, Statistics(**found)


@as_written
def tile(query: Tensor, key: Tensor, lse: Tensor, **options: Any) -> Tensor:
    """Return the weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float32."""
    from probe.kernels.triton import tile

    with _on(query):
        return tile.tile(query, key, lse, **options)


@as_written
def pool(query: Tensor, key: Tensor, lse: Tensor, **options: Any) -> Tensor:
    """Return the max of p over tiles: at most [batch, heads, *shape] float32."""
    from probe.kernels.triton import pooled

    with _on(query):
        return pooled.pool(query, key, lse, **options)


def _on(query: Tensor) -> AbstractContextManager[object]:
    """Return a context with the tensors' device as the current one, where Triton launches kernels."""
    return torch.cuda.device(query.device) if query.is_cuda else nullcontext()
