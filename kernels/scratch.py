"""Memory that one call after another uses on a CPU, where fresh pages cost as much as filling them.

A GPU's allocator keeps what is freed; malloc gives it back to the system.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}


_KEPT = _Kept()


class Scratch:
    """Named buffers, which belong to whoever has entered the context alone; then the thread keeps them for the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.named: dict[str, Tensor] = {}

    def __enter__(self) -> Scratch:
        if self.device.type == "cpu":
            self.named, _KEPT.named = _KEPT.named, {}
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cpu":
            _KEPT.named = {name: buffer for name, buffer in self.named.items() if type(buffer) is Tensor}
        self.named = {}

    def buffer(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """The buffer of that name as a tensor; what it held is lost."""
        size, held = math.prod(shape), self.named.pop(name, None)
        if held is None or held.dtype != dtype or held.numel() < size:
            del held  # before there is another
            with torch.inference_mode(False):  # tensors made in inference mode cannot be written to outside
                held = torch.empty(size, dtype=dtype, device=self.device)
        self.named[name] = held
        return held[:size].view(shape)


def forget() -> None:
    """Gives back what this thread has kept."""
    _KEPT.named = {}
