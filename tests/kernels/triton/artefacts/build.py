"""Kernels compiled for GPUs that are not there, and what the artefacts show.

The launchers of `probe.kernels.triton` run as they are, on tensors without storage, under a driver that only names the
device: each launch compiles its kernel down to machine code, and stops there. This needs TRITON_INTERPRET unset, hence
processes of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.kernels.triton.artefacts.cases import CAPABILITIES, CASES, WIDTHS
from tests.kernels.triton.artefacts.sass import ASYNCHRONOUS, PACKED, loops, mix, parse

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Nameplate:
    """A driver of a GPU that can only be compiled for; its device number is its compute capability, say 90."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """Return the number under which compiled kernels are kept."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return no stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel as it was compiled for one launch, and the integers among its constexprs."""

    name: str
    constants: dict[str, int]
    compiled: CompiledKernel


@contextmanager
def compiling(capability: int) -> Iterator[list[Launch]]:
    """Compile the launches inside instead of running them; the list that it gives holds them, in order."""
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        named = {p.name: options[p.name] for p in self.params if p.is_constexpr and p.name in options}
        if not isinstance(compiled, CompiledKernel):
            raise RuntimeError(f"{self.__name__}: expected a compiled kernel, got {compiled!r}")
        if tiles := named.pop("tiles", None):
            named |= {name.upper(): value for name, value in tiles._asdict().items()}
        integers = {name: int(value) for name, value in named.items() if isinstance(value, int)}
        launches.append(Launch(self.__name__, integers, compiled))
        return compiled

    driver.set_active(Nameplate(capability))  # pyright: ignore[reportArgumentType]
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """The facts that machine code and metadata of one kernel show.

    registers: of a thread. shared: bytes of a program. spilled: bytes of a thread's local memory, stack included.
    products: matrix-product instructions. loops: the number of loops with matrix products. The main loop is the one
    with the most products; of two with the same number it is the shorter one, for tiles that carry no mask. The other
    fields describe the main loop. mix: instructions of one warp, by pipe. copies: asynchronous copies. multiplies:
    multiply-adds of a warp in matrix products, 0 where the instruction does not show its shape. packed: instructions on
    FP32 that do two operations for each thread.
    """

    case: str
    kernel: str
    capability: int
    width: int
    warps: int
    constants: dict[str, int]
    registers: int
    shared: int
    spilled: int
    products: int
    loops: int
    mix: dict[str, int]
    copies: int
    multiplies: int
    packed: int

    @property
    def pairs(self) -> int:
        """Return the query-key pairs of one pass through the main loop, which may hold several tiles."""
        return self.constants["ROWS"] * self.constants["COLS"] * self.constants.get("UNROLL", 1)


def read(launch: Launch, *, case: str, capability: int, width: int) -> Artefact:
    """Return what the machine code of a launch shows, disassembled with the tools that come with triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", "-ndf", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG, STACK and LOCAL, got {usage!r}")
    registers, stack, local = (int(number) for number in found.groups())
    instructions, labels = parse(listing)
    inner = loops(instructions, labels)
    # a loop that searches again has fewer products, one for tiles with a mask more of everything else
    main = min(inner, key=lambda loop: (-sum(i.pipe == "tensor" for i in loop), len(loop)), default=[])
    return Artefact(
        case=case,
        kernel=launch.name,
        capability=capability,
        width=width,
        warps=launch.compiled.metadata.num_warps,
        constants=launch.constants,
        registers=registers,
        shared=launch.compiled.metadata.shared,
        spilled=stack + local,
        products=sum(i.pipe == "tensor" for i in instructions),
        loops=len(inner),
        mix=mix(main),
        copies=sum(i.opcode in ASYNCHRONOUS for i in main),
        multiplies=sum(i.multiplies for i in main),
        packed=sum(i.opcode in PACKED for i in main),
    )


def artefacts(case: str, capability: int, width: int) -> list[Artefact]:
    """Return the artefacts of every kernel that a case launches, in order."""
    launch: Callable[[int, tuple[int, int]], object] = CASES[case]
    with compiling(capability) as launches:
        launch(width, divmod(capability, 10))
    return [read(launched, case=case, capability=capability, width=width) for launched in launches]


def compiled() -> list[Artefact]:
    """Return the artefacts of all cases, from one process for each head size in which triton compiles.

    A kernel that is in Triton's cache, under a name made of its sources, is not compiled again.
    """
    with (
        patch.dict(os.environ, TRITON_DEFAULT_FP_FUSION="1"),
        ProcessPoolExecutor(len(WIDTHS), get_context("spawn")) as pool,
    ):
        os.environ.pop("TRITON_INTERPRET", None)
        return [artefact for found in pool.map(_of_width, WIDTHS) for artefact in found]


def _of_width(width: int) -> list[Artefact]:
    return [found for capability in CAPABILITIES for case in CASES for found in artefacts(case, capability, width)]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
