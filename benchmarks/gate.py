"""The checks before any timing: the kernel tests pass, and each implementation agrees with the reference.

The tests are those of a checkout; an installed wheel has none. The agreement is checked always, on the device, in the
dtype and with the heads that are measured, over lengths that fill no block.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

import probe
from probe.benchmarks.kernel_cases import inputs, requests
from probe.benchmarks.plan import Settings
from probe.errors import ProbeError
from probe.kernels.attend import attend
from probe.kernels.contract import Statistics

ROOT = Path(probe.__file__).resolve().parent.parent
LENGTHS = (67, 131)
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Largest difference from the float64 reference on the same inputs, relative to 1 + |reference|."""


def kernel_tests() -> Path | None:
    """Return the folder of kernel tests of this checkout; None where probe is installed without tests."""
    folder = ROOT / "tests" / "kernels"
    return folder if folder.is_dir() else None


def run_tests(tests: Path) -> dict[str, Any]:
    """Run the tests; return how many passed and the seconds. Raises ProbeError that names the failed ones."""
    start, where = time.monotonic(), tests.resolve()
    own = where.is_relative_to(ROOT)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rfE", "-p", "no:cacheprovider", str(where)]
    folder = ROOT if own else where if where.is_dir() else where.parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise ProbeError(
            f"the tests in {tests} fail, so nothing is measured: {', '.join(failed) or (lines or ['no output'])[-1]}"
        )
    passed = re.search(r"(\d+) passed", done.stdout)
    name = where.relative_to(ROOT).as_posix() if own else where.name
    return {"tests": name, "passed": int(passed[1]) if passed else 0, "seconds": time.monotonic() - start}


def check_agreement(settings: Settings, implementations: Sequence[str]) -> dict[str, float]:
    """Return each implementation's largest relative difference from the reference, over the statistics timed.

    Raises ProbeError where one is too large.
    """
    worst = dict.fromkeys(implementations, 0.0)
    for length in LENGTHS:
        query, key, value = inputs(settings, length)
        request = requests(length, seed=settings.seed, device=settings.device)["sets"]
        expected = attend(query, key, value, request=request, implementation="reference")
        for name in implementations:
            found = attend(query, key, value, request=request, implementation=name)
            pairs = {"output": (found[0], expected[0])}
            # without keys, for a near tie may go to either
            for field in fields(Statistics):
                if field.name != "top_key" and getattr(expected[1], field.name) is not None:
                    pairs[field.name] = getattr(found[1], field.name), getattr(expected[1], field.name)
            for what, both in pairs.items():
                error = difference(*both)
                worst[name] = max(worst[name], error)
                if not error <= TOLERANCE[settings.dtype]:
                    raise ProbeError(f"{name} disagrees with the reference: {what} by {error:.2g}; nothing is measured")
    return worst


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest |found - expected| / (1 + |expected|); NaN where only one of them is no number."""
    found, expected = found.double(), expected.double()
    apart = (found - expected).abs() / (1 + expected.abs())
    return float(apart.masked_fill(found == expected, 0).max())
