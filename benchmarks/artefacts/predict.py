"""The least time that a kernel's main loop may take on a device, from its instructions: predicted, never measured.

Every part of a multiprocessor does so much in a clock cycle: the table says how much, from NVIDIA's documents. A pass
through the loop keeps each part busy for some cycles. Were they all busy at once, the pass would take as long as the
busiest (`overlapped`); were the tensor cores idle while anything else runs, as long as both together (`apart`). Real
kernels lie between. Left out: latency, waiting at barriers, the memory of the device, what products read from shared
memory by themselves, tiles that carry a mask, and the clock, which falls under load.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from probe.benchmarks.artefacts.build import Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU by its name, and what one of its multiprocessors does in a cycle.

    multiplies: multiply-adds of half-precision products. exponentials, fp32, alu: operations of single threads. warps:
    instructions that start, each for a warp. shared: bytes of shared memory read or written. limit: bytes of shared
    memory that a program may have.
    """

    name: str
    multiplies: int
    exponentials: int
    fp32: int
    alu: int
    warps: int
    shared: int
    limit: int


# CUDA C++ Programming Guide, "Arithmetic Instructions" (exponentials, fp32, alu) and "Compute Capabilities" (limit);
# whitepapers of the A100 and H100 (multiplies); FlashAttention-4 (Zadouri et al. 2026) for the B200.
DEVICES = {
    80: Device(name="A100", multiplies=1024, exponentials=16, fp32=64, alu=64, warps=4, shared=128, limit=163 * 1024),
    90: Device(name="H100", multiplies=2048, exponentials=16, fp32=128, alu=64, warps=4, shared=128, limit=227 * 1024),
    100: Device(name="B200", multiplies=4096, exponentials=16, fp32=128, alu=64, warps=4, shared=128, limit=227 * 1024),
}


def products(artefact: Artefact) -> int:
    """Multiply-adds of one pass of a program through the main loop, from the sizes of its tiles."""
    widths = artefact.constants["DIMS"] + artefact.constants.get("VALUE_DIMS", 0)
    return artefact.pairs * widths


def busy(artefact: Artefact) -> dict[str, float]:
    """Cycles for 1,000 query-key pairs that each part of a multiprocessor is busy in the main loop."""
    device, counted = DEVICES[artefact.capability], artefact.mix
    threads = 32 * artefact.warps
    cycles = {
        "products": products(artefact) / device.multiplies,
        "exponentials": threads * counted["mufu"] / device.exponentials,
        "fp32": threads * (counted["fp32"] + artefact.packed) / device.fp32,
        "alu": threads * counted["alu"] / device.alu,
        "issue": artefact.warps * sum(counted.values()) / device.warps,
        "shared memory": artefact.warps * artefact.shared_bytes / device.shared,
    }
    return {part: 1000 * each / artefact.pairs for part, each in cycles.items()}


def overlapped(artefact: Artefact) -> float:
    """Cycles for 1,000 query-key pairs if all parts work at once: the busiest's."""
    return max(busy(artefact).values())


def apart(artefact: Artefact) -> float:
    """Cycles for 1,000 query-key pairs if products wait for all else, and all else for them."""
    cycles = busy(artefact)
    return cycles.pop("products") + max(cycles.values())


def causal_pairs(artefact: Artefact, tokens: int, *, pack: int) -> int:
    """Query-key pairs of a head that a forward kernel computes for a causal text: whole tiles up to the diagonal.

    pack: how many heads share the rows of its tiles.
    """
    rows, cols = artefact.constants["ROWS"] // pack, artefact.constants["COLS"]
    ends = (min(first + rows, tokens) for first in range(0, tokens, rows))
    return sum(rows * cols * ceil(end / cols) for end in ends)


def swept_pairs(edges: Artefact, tokens: int) -> tuple[int, int]:
    """Of a head that the column sweep computes for a causal text: pairs of whole passes, and of tiles at the edges."""
    rows, cols, block, step = (edges.constants[name] for name in ("ROWS", "COLS", "BLOCK", "STEP"))
    whole = cut = 0
    for first in range(0, tokens, block):
        swept = max(tokens - (first + block - 1), 0) // step * step
        whole += swept * block
        for start in range(first, min(first + block, tokens), cols):
            cut += ceil((tokens - swept - start) / rows) * rows * cols
    return whole, cut
