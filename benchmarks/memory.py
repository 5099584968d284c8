"""The memory that a process holds and may hold. On a GPU, memory is what torch has allocated there."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

from probe.saving.manifest import peak_memory

STATUS = Path("/proc/self/status")
SPARE = 300 * 10**6
"""Bytes that are left to the rest of the machine where a case may take all that is free."""


class Meter:
    """Memory of this process, in bytes, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def held(self) -> int:
        """Return what is held now, or the peak so far where the system does not report the former."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _bytes(STATUS, "VmRSS") if STATUS.exists() else peak_memory()

    def settle(self) -> int:
        """Free what can be freed, and return what is still held: growth is counted from there."""
        gc.collect()
        if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self.held()

    def restart(self) -> None:
        """Count the peak from now on, where the system can; elsewhere it is counted from the start of the process."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            # 5 resets VmHWM (Linux 4.0); some containers do not let a process write there
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the most held since `restart`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return peak_memory()


def available() -> int | None:
    """Return the bytes that a new process could take before the machine runs out, less SPARE; None if unknown."""
    facts = Path("/proc/meminfo")
    return _bytes(facts, "MemAvailable") - SPARE if facts.exists() else None


def _bytes(facts: Path, name: str) -> int:
    """Return one of the numbers that Linux keeps in a file, there in kB."""
    return 1024 * next(int(line.split()[1]) for line in facts.read_text().splitlines() if line.startswith(f"{name}:"))


def limit(size: int, device: torch.device) -> None:
    """Make allocations fail beyond `size` bytes, and let the system end this process first should memory run out.

    On a CPU that is Linux's RLIMIT_DATA: mapped files and reserved addresses do not count, memory that can be written
    does. Other systems have no such limit.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), device)
        return
    if sys.platform != "linux":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
