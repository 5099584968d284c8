"""Key sets as one word of bits per key, so that a kernel loads all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Members:
    """The sets that hold each key: bit s of a word is set s.

    words: [batch or 1, heads or 1, keys] int32. occupied: [.., tiles] int32, the sets with a key in a tile.
    """

    words: Tensor
    occupied: Tensor
    sets: int

    @classmethod
    def of(cls, sets: Tensor, cols: int) -> Members:
        """Return the members of [batch or 1, heads or 1, sets, keys] bool, for tiles of `cols` keys."""
        return cls(_bits(sets), _bits(_held(sets, cols)), sets.shape[2])


@dataclass(frozen=True, slots=True)
class Visits:
    """The tiles that hold keys of a set, so that a kernel goes from one to the next and loads ahead.

    order [batch or 1, heads or 1, sets, tiles] int32: those that do in order, then the others; before [.., tiles + 1]
    int32: how many of those that do come before a tile.
    """

    order: Tensor
    before: Tensor

    @classmethod
    def of(cls, sets: Tensor, cols: int) -> Visits:
        """Return the members of [batch or 1, heads or 1, sets, keys] bool, for tiles of `cols` keys."""
        held = _held(sets, cols)
        order = held.int().argsort(dim=-1, descending=True, stable=True)
        return cls(order.int(), pad(held.int().cumsum(-1), (1, 0)).int())


def _held(sets: Tensor, cols: int) -> Tensor:
    """Return whether a set has a key in a tile: [.., sets, keys] bool -> [.., sets, tiles]."""
    keys = sets.shape[3]
    tiles = triton.cdiv(keys, cols)
    return pad(sets, (0, tiles * cols - keys)).unflatten(3, (tiles, cols)).any(4)


def _bits(sets: Tensor) -> Tensor:
    """Return sets as bits: [.., sets, n] bool -> [.., n] int32; set 31 is the sign."""
    power = torch.arange(sets.shape[-2], device=sets.device)
    return (sets.long() << power[:, None]).sum(-2).to(torch.int32)
