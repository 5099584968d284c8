"""Arguments of attention that do not fit together, refused with one line: expected ..., got ...."""

from __future__ import annotations

import math

from torch import Tensor

from probe.kernels.contract import Request, Scoring
from probe.kernels.edits import Reweighting

MOST_SETS = 32
Size = int | str | tuple[int, ...] | range
"""The size that a dimension must have, the name of one that may have any, or those from which it may choose."""


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


def check_scoring(query: Tensor, key: Tensor, scoring: Scoring) -> None:
    """Raises ValueError for a mask, scale, cap or edit that cannot be meant, or does not fit query and key."""
    (batch, heads, queries, _), keys, mask = query.shape, key.shape[2], scoring.mask
    if mask.window is not None and mask.window < 1:
        raise ValueError(f"mask.window: expected at least 1 key, got {mask.window}")
    if mask.keys is not None:
        check("mask.keys", mask.keys, [batch, keys], "bool", query)
    if mask.pairs is not None:
        check("mask.pairs", mask.pairs, [(batch, 1), (heads, 1), queries, keys], "bool", query)
    if not math.isfinite(scoring.scale):
        raise ValueError(f"scale: expected a finite number, got {scoring.scale}")
    if scoring.softcap is not None and not 0 < scoring.softcap < math.inf:
        raise ValueError(f"softcap: expected a positive number, got {scoring.softcap}")
    for edit in scoring.edits:
        if isinstance(edit, Reweighting):
            sets = edit.sets.shape[2] if edit.sets.ndim == 4 else 0
            check("edit.sets", edit.sets, [(batch, 1), (heads, 1), sets, keys], "bool", query)
            size = [queries, sets]
        else:
            check("edit.rows", edit.rows, [(batch, 1), "rows"], "int64 query indices", query)
            for rows in edit.rows.tolist():
                if len(set(rows)) < len(rows) or any(not 0 <= row < queries for row in rows):
                    raise ValueError(f"edit.rows: expected different query indices in [0, {queries}), got {rows}")
            size = [edit.rows.shape[1], keys]
        check("edit.log", edit.log, [(batch, 1), (heads, 1), *size], "floating", query)


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
        check("sets", request.sets, [(batch, 1), (heads, 1), range(1, MOST_SETS + 1), keys], "bool", query)
    elif request.partial:
        raise ValueError("partial: expected key sets in `sets`, got none")
    band = request.received
    if band is not None and band.hi is not None and band.hi < band.lo:
        raise ValueError(f"received: expected lo <= hi, got lo={band.lo}, hi={band.hi}")
    if band is not None and band.start is not None and band.stop is not None and band.stop < band.start:
        raise ValueError(f"received: expected start <= stop, got start={band.start}, stop={band.stop}")
    if request.pooled is not None and min(request.pooled) < 1:
        raise ValueError(f"pooled: expected at least (1, 1) rows and columns, got {request.pooled}")


def check(name: str, tensor: Tensor, sizes: list[Size], kind: str, query: Tensor) -> None:
    """Raises ValueError unless a tensor has these sizes and values of this kind, on the query's device."""
    fits = tensor.ndim == len(sizes) and all(map(_allows, sizes, tensor.shape))
    right = tensor.is_floating_point() if kind == "floating" else str(tensor.dtype) == f"torch.{kind.split()[0]}"
    if not fits or not right or tensor.device != query.device:
        wanted = ", ".join(map(_words, sizes))
        found = f"{_size(tensor)} {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: expected [{wanted}] {kind} on {query.device}, got {found}")


def _allows(allowed: Size, size: int) -> bool:
    return isinstance(allowed, str) or (size == allowed if isinstance(allowed, int) else size in allowed)


def _words(allowed: Size) -> str:
    if isinstance(allowed, range):
        return f"{allowed[0]} to {allowed[-1]}"
    return " or ".join(map(str, dict.fromkeys(allowed))) if isinstance(allowed, tuple) else str(allowed)


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))
