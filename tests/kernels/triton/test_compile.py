"""Every Triton kernel compiled down to machine code for GPUs that need not be there, and what the code shows.

Half precision, all statistics on. Processes of their own compile, for this one interprets; nothing runs on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from probe.benchmarks.artefacts.build import Artefact
from probe.benchmarks.artefacts.cases import CAPABILITIES, CASES, WIDTHS
from probe.benchmarks.artefacts.page import COLUMNS_TARGET, ROWS_TARGET
from probe.benchmarks.artefacts.predict import DEVICES, apart, products

ROOT = Path(__file__).parents[3]

# Each kernel at least once; the page compiles them all.
COMPILED = [case for case in CASES if case not in ("rows and 4 sets", "plain, 64 keys", "plain, 128 keys")]
# Kernels without a loop over keys or queries.
STRAIGHT = {"tile_kernel", "combine_kernel"}

everywhere = pytest.mark.parametrize("width", WIDTHS)
each_device = pytest.mark.parametrize("capability", CAPABILITIES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple[int, int], list[Artefact]]:
    """Artefacts of all cases by compute capability and head size, compiled once, by one process for each size."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_DEFAULT_FP_FUSION": "1"}

    def build(width: int) -> str:
        command = [sys.executable, "-m", "probe.benchmarks.artefacts.build", "--width", str(width), "--case", *COMPILED]
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found: dict[tuple[int, int], list[Artefact]] = {}
    with ThreadPoolExecutor(len(WIDTHS)) as pool:
        for out in pool.map(build, WIDTHS):
            for line in out.splitlines():
                artefact = Artefact(**json.loads(line))
                found.setdefault((artefact.capability, artefact.width), []).append(artefact)
    return found


def named(artefacts: list[Artefact], wrong) -> list[str]:
    """Those for which something is wrong, for a message."""
    return [f"{a.case}: {a.kernel}, {a.registers} registers, {a.spilled} spilled" for a in artefacts if wrong(a)]


@each_device
@everywhere
def test_every_case_compiles_to_its_kernels(compiled, capability, width):
    kernels = Counter(a.case for a in compiled[capability, width])
    # which have a second kernel, that puts parts together and that sees to the edges
    assert kernels == Counter(COMPILED) + Counter(["decode", "received"])


@each_device
@everywhere
def test_nothing_spills(compiled, capability, width):
    assert not named(compiled[capability, width], lambda a: a.spilled)


@each_device
@everywhere
def test_shared_memory_fits_the_device(compiled, capability, width):
    limit = DEVICES[capability].limit
    assert not named(compiled[capability, width], lambda a: a.shared > limit)
    assert any(a.shared > 16 * 1024 for a in compiled[capability, width])


@each_device
@everywhere
def test_products_run_on_tensor_cores(compiled, capability, width):
    assert not named(compiled[capability, width], lambda a: not a.products and a.kernel != "combine_kernel")


@each_device
@everywhere
def test_main_loops_copy_asynchronously(compiled, capability, width):
    looping = [a for a in compiled[capability, width] if a.kernel not in STRAIGHT]
    assert not named(looping, lambda a: not a.loops)
    assert not named(looping, lambda a: not a.copies)


@everywhere
@pytest.mark.parametrize("capability", [80, 90])
def test_one_pass_through_the_main_loop_is_one_tile(compiled, capability, width):
    """Where products show their shape: as many multiply-adds as the tile has, so what is counted is the whole loop."""
    cases = ("plain", "rows", "received", "pooled", "partial")
    counted = [a for a in compiled[capability, width] if a.case in cases]
    assert len(counted) == len(cases) + 1
    assert not named(counted, lambda a: a.multiplies * a.warps != products(a))


@each_device
@everywhere
def test_statistics_that_are_not_asked_for_cost_nothing(compiled, capability, width):
    """The plain forward pass has 8 % fewer instructions in its loop than with statistics of rows, a quarter less
    arithmetic, and no more registers."""
    by_case = {a.case: a for a in compiled[capability, width] if a.kernel == "forward_kernel"}
    plain, rows = by_case["plain"], by_case["rows"]
    assert sum(plain.mix.values()) < 0.92 * sum(rows.mix.values())
    assert plain.mix["fp32"] + plain.packed < 0.75 * (rows.mix["fp32"] + rows.packed)
    assert plain.registers <= rows.registers
    assert plain.mix["mufu"] == rows.mix["mufu"]


@each_device
@everywhere
def test_the_column_sweep_has_one_product_and_fewer_instructions_than_attention(compiled, capability, width):
    by_case = {a.case: a for a in compiled[capability, width] if a.kernel != "edges_kernel"}
    sweep, plain = by_case["received"], by_case["plain"]
    assert products(sweep) / sweep.pairs == products(plain) / plain.pairs / 2
    for part in ("mufu", "alu", "memory"):
        assert sweep.mix[part] * sweep.warps / sweep.pairs < plain.mix[part] * plain.warps / plain.pairs, part
    polynomials = sweep.constants["QUARTERS"] / (4 * sweep.constants["UNROLL"])
    assert sweep.mix["mufu"] * sweep.warps * 32 == sweep.pairs * (1 - polynomials)
    assert polynomials == {80: 0, 90: 5 / 16 if width == 64 else 1 / 4, 100: 3 / 8}[capability]


@each_device
@everywhere
def test_the_predicted_overhead_of_statistics_is_within_its_targets(compiled, capability, width):
    by_case = {a.case: a for a in compiled[capability, width] if a.kernel != "edges_kernel"}
    plain, rows, received = (apart(by_case[case]) for case in ("plain", "rows", "received"))
    assert rows <= ROWS_TARGET * plain
    assert plain + received <= COLUMNS_TARGET * plain
