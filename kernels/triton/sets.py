"""Key sets as one word of bits per key, so that a kernel loads all of them at once."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad


def members(sets: Tensor, cols: int) -> tuple[Tensor, Tensor]:
    """Return the sets that hold each key as bits (bit s is set s), and those that hold a key of each tile of `cols`.

    sets [batch or 1, heads or 1, sets, keys] bool -> [.., keys] and [.., tiles] int32.
    """
    return _bits(sets), _bits(_held(sets, cols))


def visits(sets: Tensor, cols: int) -> tuple[Tensor, Tensor]:
    """Return the tiles of `cols` keys in the order of visits, and how many that hold keys of a set come before each.

    So a kernel goes from one tile with keys of the set to the next, and loads ahead: those that do come in order, then
    the others. sets [batch or 1, heads or 1, sets, keys] bool -> [.., sets, tiles] and [.., sets, tiles + 1] int32.
    """
    held = _held(sets, cols).int()
    return held.argsort(dim=-1, descending=True, stable=True).int(), pad(held.cumsum(-1), (1, 0)).int()


def _held(sets: Tensor, cols: int) -> Tensor:
    """Return whether a set has a key in a tile: [.., sets, keys] bool -> [.., sets, tiles]."""
    keys = sets.shape[3]
    tiles = triton.cdiv(keys, cols)
    return pad(sets, (0, tiles * cols - keys)).unflatten(3, (tiles, cols)).any(4)


def _bits(sets: Tensor) -> Tensor:
    """Return sets as bits: [.., sets, n] bool -> [.., n] int32; set 31 is the sign."""
    power = torch.arange(sets.shape[-2], device=sets.device)
    return (sets.long() << power[:, None]).sum(-2).to(torch.int32)
