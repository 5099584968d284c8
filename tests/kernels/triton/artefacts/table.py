"""The table of docs/kernels.md: `python -m tests.kernels.triton.artefacts.table` compiles the kernels and prints it."""

from __future__ import annotations

import re
import subprocess

import triton

from tests.kernels.triton.artefacts.build import TOOLS, Artefact, compiled
from tests.kernels.triton.artefacts.cases import CAPABILITIES, CASES, DEVICES, WIDTHS


def versions() -> str:
    """Return the versions of triton and of the assembler that comes with it."""
    banner = subprocess.run([TOOLS / "ptxas", "--version"], text=True, capture_output=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", banner)
    return f"Triton {triton.__version__}, ptxas {found[1] if found else 'of no known release'}"


def table(artefacts: list[Artefact]) -> list[str]:
    """Return the lines of a Markdown table: registers of a thread and KiB of shared memory, a row for each kernel."""
    places = [(capability, width) for capability in CAPABILITIES for width in WIDTHS]
    by_kernel: dict[tuple[str, str], dict[tuple[int, int], Artefact]] = {}
    for a in artefacts:
        by_kernel.setdefault((a.case, a.kernel), {})[a.capability, a.width] = a
    head = ["kernel", *(f"{DEVICES[capability].name} {width}" for capability, width in places)]
    lines = [head, ["---"] + ["---:"] * len(places)]
    for case in CASES:
        for (of, kernel), found in by_kernel.items():
            if of == case:
                cells = (f"{a.registers}, {a.shared / 1024:.0f}" for a in map(found.__getitem__, places))
                lines.append([f"{case}: `{kernel}`", *cells])
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    print(f"{versions()}\n", *table(compiled()), sep="\n")
