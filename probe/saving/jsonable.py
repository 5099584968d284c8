"""Python values as strictly valid JSON and back, without loss.

JSON has no NaN, no infinities and no head names, so these travel as one-key objects: {"$float": "nan" | "inf" | "-inf"}
and {"$head": [layer, head]}. Finite floats are written in the shortest form that reads back as the same double.
`plain` is the one-way form for readers outside this library: NaN becomes null, infinities become the strings
"Infinity" and "-Infinity", a head becomes {"layer": 18, "head": 6}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from probe.heads import Head

Leaf = Callable[[Any, str], Any]


def unknown(value: Any, where: str) -> Any:
    """Raise TypeError naming where the value stands: it has no JSON form."""
    raise TypeError(f"{where} holds a {type(value).__name__}, expected numbers, strings, lists, dicts, Heads or None")


def encode(value: Any, where: str = "value", *, other: Leaf = unknown) -> Any:
    """Return the value in JSON's own types; `other(value, where)` stands in for what has none. Tuples become lists."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Head):
        return {"$head": [value.layer, value.head]}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | range):
        return [encode(item, f"{where}.{index}", other=other) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and not key.startswith("$") for key in value):
            raise TypeError(f"{where} has keys that are not strings free of a leading $, got {list(value)!r}")
        return {key: encode(item, f"{where}.{key}", other=other) for key, item in value.items()}
    return other(value, where)


def decode(value: Any, *, other: Callable[[str, Any], Any] | None = None) -> Any:
    """Return what `encode` was given, with lists for tuples; `other(tag, content)` reads the objects that it wrote."""
    if isinstance(value, list):
        return [decode(item, other=other) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        tag, content = next(iter(value.items()))
        if tag == "$float":
            return float(content)
        if tag == "$head":
            return Head(*content)
        if tag.startswith("$") and other is not None:
            return other(tag, content)
    return {key: decode(item, other=other) for key, item in value.items()}


def plain(value: Any) -> Any:
    """Return the value as JSON for other programs, one way: numpy scalars and arrays become numbers."""
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else None if math.isnan(value) else str(value).replace("inf", "Infinity")
    if isinstance(value, Head):
        return value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return plain(value.tolist())
    return str(value)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON text of an encoded or plain value; ValueError for a NaN that neither function has seen."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
