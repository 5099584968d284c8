"""Key sets as one word of bits per key, so that a kernel loads all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Members:
    """words [batch or 1, heads or 1, keys] int32, bit s of which is set s; occupied [.., tiles], those in a tile."""

    words: Tensor
    occupied: Tensor
    sets: int

    @classmethod
    def of(cls, sets: Tensor, cols: int) -> Members:
        """Of [batch or 1, heads or 1, sets, keys] bool, for tiles of `cols` keys."""
        count, keys = sets.shape[2:]
        tiles = triton.cdiv(keys, cols)
        held = pad(sets, (0, tiles * cols - keys)).unflatten(3, (tiles, cols)).any(4)
        return cls(_bits(sets), _bits(held), count)


def _bits(sets: Tensor) -> Tensor:
    """[.., sets, n] bool -> [.., n] int32; set 31 is the sign."""
    power = torch.arange(sets.shape[-2], device=sets.device)
    return (sets.long() << power[:, None]).sum(-2).to(torch.int32)
