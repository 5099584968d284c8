"""Tensors inside JSON: the records of units may hold them, exactly and in little more space than their bytes.

A tensor travels as {"$packed": [dtype, shape, bytes]}, its bytes compressed and written in base64. This keeps a unit's
record one line of units.jsonl, whole or absent after a kill. Results keep their tensors in safetensors files instead.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

from probe.saving.jsonable import unknown

DTYPES = ("float64", "float32", "int64", "bool")


def pack(value: Any, where: str) -> dict[str, Any]:
    """Return the JSON form of a tensor; raise TypeError for any other value, naming where it stands."""
    import torch

    if not isinstance(value, torch.Tensor) or (dtype := str(value.dtype).removeprefix("torch.")) not in DTYPES:
        return unknown(value, where)
    content = zlib.compress(value.detach().cpu().contiguous().numpy().tobytes(), level=1)
    return {"$packed": [dtype, list(value.shape), base64.b64encode(content).decode("ascii")]}


def unpack(tag: str, content: Any) -> Any:
    """Return the tensor that `pack` was given; an object with another tag comes back as it is."""
    if tag != "$packed":
        return {tag: content}
    import torch

    dtype, shape, text = content
    values = bytearray(zlib.decompress(base64.b64decode(text)))  # a tensor over immutable bytes would warn
    if not values:
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(values, dtype=getattr(torch, dtype)).reshape(shape)
