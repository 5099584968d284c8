"""Compiles every kernel for every device and head size, and writes docs/kernels.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton

from probe.benchmarks.artefacts.build import TOOLS, Artefact
from probe.benchmarks.artefacts.cases import CAPABILITIES, CASES, WIDTHS
from probe.benchmarks.artefacts.page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def build(capability: int) -> list[Artefact]:
    """The artefacts for one device, from a process in which triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "probe.benchmarks.artefacts.build", "--capability", str(capability)]
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return [Artefact(**json.loads(line)) for line in done.stdout.splitlines()]


def versions() -> str:
    """Of triton and of the assemblers that come with it."""
    banner = subprocess.run([TOOLS / "ptxas", "--version"], text=True, capture_output=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", banner)
    return f"Triton {triton.__version__}, ptxas {found[1] if found else 'of no known release'}"


def main() -> None:
    """Writes the page, two devices at a time."""
    with ThreadPoolExecutor(2) as pool:
        artefacts = [artefact for found in pool.map(build, CAPABILITIES) for artefact in found]
    order = {case: at for at, case in enumerate(CASES)}
    artefacts.sort(key=lambda a: (order[a.case], a.capability, WIDTHS.index(a.width)))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(artefacts, versions()), encoding="utf-8")


if __name__ == "__main__":
    main()
