"""The C++ library behind the native implementation: built once for this processor and this torch, then kept."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
# Errors and traps of the mathematical functions are nobody's here, and keep loops from being vectorised.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")

log = logging.getLogger("probe")


@functools.cache
def unavailable() -> str | None:
    """Return why the library cannot be had on this machine, or None once it is built and loaded."""
    if sys.platform != "linux":
        return f"is built on Linux only, not on {sys.platform}"
    if compiler() is None:
        return "needs a C++ compiler: install g++ (Debian: apt-get install g++), or name one in CXX"
    library = place()
    try:
        if not library.exists():
            build(library)
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in said if "error:" in line), said[0])
        log.warning("the CPU kernels could not be built, so slower ones run: %s", reason)
        return f"could not be built: {reason}"
    return None


def compiler() -> str | None:
    """Return the path of the C++ compiler that torch would take, None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def place() -> Path:
    """Return the library's file, whose name changes with its sources, torch, the compiler and the processor."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    for fact in (*FLAGS, torch.__version__, torch.version.cuda, sys.version, version, *processor()):
        digest.update(str(fact).encode())
    # where torch's own loader would put it, without importing that loader and setuptools with it
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions"
    return Path(root) / "probe_native" / f"attention-{digest.hexdigest()[:16]}.so"


def processor() -> Iterator[str]:
    """Yield what distinguishes this processor from others."""
    yield platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        kinds = ("model name", "flags", "Features", "CPU part")
        yield from sorted({line for line in facts.read_text().splitlines() if line.startswith(kinds)})


def build(library: Path) -> None:
    """Compile the library and move it to its place. Raises RuntimeError with the compiler's message."""
    from unittest.mock import patch

    from torch.utils.cpp_extension import load

    log.warning("building the CPU kernels, once for this machine: about ten seconds")
    library.parent.mkdir(parents=True, exist_ok=True)
    # torch's own build folder is locked by a file that a killed build leaves behind for ever
    # torch calls ninja by name, and it lies beside Python, which need not be on the path
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    with tempfile.TemporaryDirectory(dir=library.parent) as folder, patch.dict(os.environ, PATH=path):
        load(
            name="probe_native",
            sources=[str(FOLDER / "attention.cpp")],
            extra_cflags=list(FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=folder,
            is_python_module=False,
        )
        os.replace(Path(folder) / "probe_native.so", library)
