"""The launches of the kernels: a table by width, dtype and device, and no tuner."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from probe.kernels.triton.call import interpreted

# Rows up to this many are a decode step: too few to fill a device, so programs share their keys.
FEW_ROWS = 64


class Tiles(NamedTuple):
    """Query rows and keys of a tile, warps of a program, tiles of keys in flight, programs that share a row's keys.

    edge: keys of a tile that carries a mask, at most; a narrower one takes fewer registers.

    slots, run: a row's sums are kept in `slots` parts, and a tile in slots / run equal pieces; runs of `run` columns of
    a piece take turns between its parts. The best depends on which columns of a matrix product a thread
    has; 1 slot is right everywhere.

    settle: whether the sums of a tile must be there before its product with the values (`rows.after`).
    """

    rows: int
    cols: int
    warps: int
    stages: int
    edge: int = 64
    splits: int = 1
    slots: int = 1
    run: int = 1
    settle: bool = False

    def narrow(self) -> Tiles:
        """Return the tiles for sweeps that mask every tile."""
        return self._replace(cols=min(self.cols, self.edge))

    def options(self) -> dict[str, Any]:
        """Return the options of a launch; one kernel serves any number of splits.

        Products and sums become multiply-adds, whatever Triton's default is.
        """
        tiles = self._replace(edge=min(self.cols, self.edge), splits=1)
        return {"tiles": tiles, "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def capability_of(query: Tensor) -> tuple[int, int]:
    """Return the compute capability of the query's device; (0, 0) for AMD's, whose shared memory is 64 KiB."""
    if not query.is_cuda or torch.version.hip is not None:
        return (0, 0)
    return torch.cuda.get_device_capability(query.device)


def forward_tiles(width: int, dtype: torch.dtype, capability: tuple[int, int], *, sets: int = 0) -> Tiles:
    """Return the tiles for more than FEW_ROWS rows; up to a width of 128 no registers spill (docs/kernels.md)."""
    if dtype == torch.float32:
        return Tiles(rows=32, cols=32 if width <= 64 else 16, warps=4, stages=2)
    if width > 128:
        return Tiles(rows=64, cols=32, warps=8, stages=2)
    wide = width > 64
    if capability < (8, 0):
        return Tiles(rows=64, cols=32, warps=4, stages=1)
    if capability < (9, 0):
        if wide and sets > 16:
            return Tiles(rows=32, cols=32, warps=4, stages=3)
        if wide:
            return Tiles(rows=128, cols=16 if sets else 32, warps=8, stages=3, slots=8, run=8)
        if sets:
            return Tiles(rows=64, cols=32, warps=4, stages=3, slots=8, run=8)
        return Tiles(rows=128, cols=64, warps=8, stages=3, slots=8, run=8)
    if capability < (10, 0):
        if sets:
            return Tiles(rows=128, cols=32 if wide else 64, warps=8, stages=3, slots=8, run=8)
        return Tiles(rows=128, cols=128, warps=8, stages=2 if wide else 3, slots=8, run=8)
    if sets:
        return Tiles(rows=128, cols=64, warps=8, stages=2, edge=32, slots=8, run=4, settle=True)
    return Tiles(rows=128, cols=128, warps=8, stages=2, slots=8, run=4, settle=True)


def decode_tiles(rows: int, width: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the tiles for few rows, the narrowest that hold them; `share_keys` says `splits`."""
    high = max(16, min(FEW_ROWS, triton.next_power_of_2(rows)))
    if dtype == torch.float32:
        return Tiles(rows=min(high, 32), cols=32 if width <= 64 else 16, warps=4, stages=2)
    return Tiles(rows=high, cols=32 if width > 128 else 64, warps=4, stages=1 if capability < (8, 0) else 3)


def share_keys(query: Tensor, programs: int, tiles: int) -> int:
    """Return how many programs share a row's `tiles` tiles of keys: two programs for each multiprocessor."""
    if interpreted():
        return 1
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    # a program of fewer than four tiles spends its time on starting and on putting sums together
    return max(1, min(2 * processors // programs, tiles // 4, 128))
