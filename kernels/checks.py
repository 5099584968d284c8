"""Arguments of attention that do not fit together, refused with one line: expected ..., got ...."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probe.kernels.contract import Mask, Request
from probe.kernels.edits import Edit, Reweighting

MOST_SETS = 32


def check_tensors(query: Tensor, key: Tensor, value: Tensor | None = None) -> None:
    """Raises ValueError unless query, key and value agree in rank, dtype, device and sizes."""
    named = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, tensor in named.items():
        if tensor.ndim != 4:
            raise ValueError(f"{name}: expected 4 dimensions [batch, heads, length, width], got {_size(tensor)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected a floating dtype, got {tensor.dtype}")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name}: expected {query.dtype} on {query.device}, as the query, got {tensor.dtype} on {tensor.device}"
            )
        if 0 in tensor.shape:
            raise ValueError(f"{name}: expected no empty dimension, got {_size(tensor)}")
    batch, heads, _, head_dim = query.shape
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise ValueError(
            f"key: expected [{batch}, kv_heads, keys, {head_dim}] to fit query {_size(query)}, got {_size(key)}"
        )
    if heads % key.shape[1]:
        raise ValueError(f"key: expected a number of KV heads that divides {heads} query heads, got {key.shape[1]}")
    if value is not None and value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value: expected {[*key.shape[:3], 'value_dim']} to fit key {_size(key)}, got {_size(value)}")


def check_mask(query: Tensor, key: Tensor, mask: Mask) -> None:
    """Raises ValueError unless the mask's tensors broadcast to [batch, heads, queries, keys]."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    if mask.window is not None and mask.window < 1:
        raise ValueError(f"mask.window: expected at least 1 key, got {mask.window}")
    if mask.keys is not None:
        _check_bool("mask.keys", mask.keys, [(batch,), (keys,)], query.device)
    if mask.pairs is not None:
        _check_bool("mask.pairs", mask.pairs, [(batch, 1), (heads, 1), (queries,), (keys,)], query.device)


def check_scalars(scale: float | None, softcap: float | None) -> None:
    """Raises ValueError unless scale is finite and softcap positive."""
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap: expected a positive number, got {softcap}")


def check_sinks(query: Tensor, sinks: Tensor | None) -> None:
    """Raises ValueError unless sinks hold one floating logit per query head, on the query's device."""
    if sinks is None:
        return
    if sinks.shape != (query.shape[1],) or not sinks.is_floating_point() or sinks.device != query.device:
        raise ValueError(f"sinks: expected [{query.shape[1]}] floating on {query.device}, got {_found(sinks)}")


def check_lse(query: Tensor, lse: Tensor) -> None:
    """Raises ValueError unless lse is [batch, heads, queries], floating, on the query's device."""
    if lse.shape != query.shape[:3] or not lse.is_floating_point() or lse.device != query.device:
        raise ValueError(f"lse: expected {list(query.shape[:3])} floating on {query.device}, got {_found(lse)}")


def check_ranges(query: Tensor, key: Tensor, rows: range, cols: range) -> None:
    """Raises ValueError unless rows and cols are non-empty, ascending ranges of query and key indices."""
    for name, span, size in (("rows", rows, query.shape[2]), ("cols", cols, key.shape[2])):
        if not len(span) or span.step < 1 or span[0] < 0 or span[-1] >= size:
            raise ValueError(f"{name}: expected a non-empty ascending range of indices in [0, {size}), got {span}")


def check_request(query: Tensor, key: Tensor, request: Request) -> None:
    """Raises ValueError for a statistic that these tensors do not have."""
    batch, heads, _, _ = query.shape
    keys = key.shape[2]
    if request.windowed_distance is not None and request.windowed_distance < 1:
        raise ValueError(f"windowed_distance: expected a window of at least 1 token, got {request.windowed_distance}")
    if not 0 <= request.top <= keys:
        raise ValueError(f"top: expected between 0 and {keys} keys, got {request.top}")
    if request.sets is not None:
        _check_bool("sets", request.sets, [(batch, 1), (heads, 1), range(1, MOST_SETS + 1), (keys,)], query.device)
    elif request.partial:
        raise ValueError("partial: expected key sets in `sets`, got none")
    band = request.received
    if band is not None and band.hi is not None and band.hi < band.lo:
        raise ValueError(f"received: expected lo <= hi, got lo={band.lo}, hi={band.hi}")
    if band is not None and band.start is not None and band.stop is not None and band.stop < band.start:
        raise ValueError(f"received: expected start <= stop, got start={band.start}, stop={band.stop}")
    if request.pooled is not None and min(request.pooled) < 1:
        raise ValueError(f"pooled: expected at least (1, 1) rows and columns, got {request.pooled}")


def check_edits(query: Tensor, key: Tensor, edits: tuple[Edit, ...]) -> None:
    """Raises ValueError unless the tensors of every edit broadcast to what they edit."""
    batch, heads, queries, _ = query.shape
    keys, device = key.shape[2], query.device
    for edit in edits:
        if isinstance(edit, Reweighting):
            sets = edit.sets.shape[2] if edit.sets.ndim == 4 else 0
            _check_bool("edit.sets", edit.sets, [(batch, 1), (heads, 1), (sets,), (keys,)], device)
            wanted = (queries, sets)
        else:
            _check_rows(edit.rows, batch, queries, device)
            wanted = (edit.rows.shape[1], keys)
        log = edit.log
        fits = log.ndim == 4 and log.shape[0] in (batch, 1) and log.shape[1] in (heads, 1) and log.shape[2:] == wanted
        if not fits or not log.is_floating_point() or log.device != device:
            sizes = f"{_choice((batch, 1))}, {_choice((heads, 1))}, {wanted[0]}, {wanted[1]}"
            raise ValueError(f"edit.log: expected [{sizes}] floating on {device}, got {_found(log)}")


def _check_rows(rows: Tensor, batch: int, queries: int, device: torch.device) -> None:
    if rows.ndim != 2 or rows.shape[0] not in (batch, 1) or rows.dtype != torch.int64 or rows.device != device:
        sizes = f"{_choice((batch, 1))}, rows"
        raise ValueError(f"edit.rows: expected [{sizes}] int64 query indices on {device}, got {_found(rows)}")
    for found in rows.tolist():
        if len(set(found)) < len(found) or any(not 0 <= row < queries for row in found):
            raise ValueError(f"edit.rows: expected different query indices in [0, {queries}), got {found}")


def _check_bool(name: str, tensor: Tensor, sizes: list[tuple[int, ...] | range], device: torch.device) -> None:
    fits = tensor.ndim == len(sizes) and all(size in allowed for size, allowed in zip(tensor.shape, sizes, strict=True))
    if not fits or tensor.dtype != torch.bool or tensor.device != device:
        wanted = ", ".join(_choice(allowed) for allowed in sizes)
        raise ValueError(f"{name}: expected [{wanted}] bool on {device}, got {_found(tensor)}")


def _choice(allowed: tuple[int, ...] | range) -> str:
    if isinstance(allowed, range):
        return f"{allowed[0]} to {allowed[-1]}"
    return " or ".join(str(size) for size in dict.fromkeys(allowed))


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _found(tensor: Tensor) -> str:
    return f"{_size(tensor)} {tensor.dtype} on {tensor.device}"
