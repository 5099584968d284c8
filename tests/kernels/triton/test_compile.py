"""Every Triton kernel compiled down to machine code for GPUs that need not be there, and what the code shows.

Half precision, all statistics on. Processes of their own compile, for this one interprets; nothing runs on a GPU.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.kernels.triton.artefacts.build import Artefact, compiled
from tests.kernels.triton.artefacts.cases import CAPABILITIES, CASES, DEVICES, WIDTHS
from tests.kernels.triton.artefacts.table import table, versions

PAGE = Path(__file__).parents[3] / "docs" / "kernels.md"

# Kernels without a loop over keys or queries.
STRAIGHT = {"tile_kernel", "combine_kernel"}
# Kernels with a second product, of weights and values.
WITH_VALUES = {"forward_kernel", "partial_kernel"}

pytestmark = pytest.mark.slow
everywhere = pytest.mark.parametrize("width", WIDTHS)
each_device = pytest.mark.parametrize("capability", CAPABILITIES)


@pytest.fixture(scope="module")
def artefacts() -> list[Artefact]:
    """Artefacts of all cases; what Triton's cache holds for these sources is not compiled again."""
    return compiled()


@pytest.fixture(scope="module")
def by_place(artefacts) -> dict[tuple[int, int], list[Artefact]]:
    """The artefacts by compute capability and head size."""
    found: dict[tuple[int, int], list[Artefact]] = {}
    for artefact in artefacts:
        found.setdefault((artefact.capability, artefact.width), []).append(artefact)
    return found


def products(artefact: Artefact) -> int:
    """Multiply-adds of one pass of a program through the main loop, from the sizes of its tiles."""
    return artefact.pairs * artefact.width * (2 if artefact.kernel in WITH_VALUES else 1)


def named(artefacts: list[Artefact], wrong) -> list[str]:
    """Those for which something is wrong, for a message."""
    return [f"{a.case}: {a.kernel}, {a.registers} registers, {a.spilled} spilled" for a in artefacts if wrong(a)]


@each_device
@everywhere
def test_every_case_compiles_to_its_kernels(by_place, capability, width):
    kernels = Counter(a.case for a in by_place[capability, width])
    # two cases launch a second kernel: one puts the parts together, one sweeps the edges of the mask
    assert kernels == Counter([*CASES, "decode", "received"])


@each_device
@everywhere
def test_nothing_spills(by_place, capability, width):
    assert not named(by_place[capability, width], lambda a: a.spilled)


@each_device
@everywhere
def test_shared_memory_fits_the_device(by_place, capability, width):
    limit = DEVICES[capability].shared
    assert not named(by_place[capability, width], lambda a: a.shared > limit)
    assert any(a.shared > 16 * 1024 for a in by_place[capability, width])


@each_device
@everywhere
def test_products_run_on_tensor_cores(by_place, capability, width):
    assert not named(by_place[capability, width], lambda a: not a.products and a.kernel != "combine_kernel")


@each_device
@everywhere
def test_main_loops_copy_asynchronously(by_place, capability, width):
    looping = [a for a in by_place[capability, width] if a.kernel not in STRAIGHT]
    assert not named(looping, lambda a: not a.loops)
    assert not named(looping, lambda a: not a.copies)


@everywhere
@pytest.mark.parametrize("capability", [80, 90])
def test_one_pass_through_the_main_loop_is_one_tile(by_place, capability, width):
    """Where products show their shape: as many multiply-adds as the tile has, so what is counted is the whole loop."""
    cases = ("plain", "rows", "received", "pooled", "partial")
    counted = [a for a in by_place[capability, width] if a.case in cases]
    assert len(counted) == len(cases) + 1
    assert not named(counted, lambda a: a.multiplies * a.warps != products(a))


@each_device
@everywhere
def test_statistics_that_are_not_asked_for_cost_nothing(by_place, capability, width):
    """The plain forward pass has 8 % fewer instructions in its loop than with statistics of rows, a quarter less
    arithmetic, and no more registers."""
    by_case = {a.case: a for a in by_place[capability, width] if a.kernel == "forward_kernel"}
    plain, rows = by_case["plain"], by_case["rows"]
    assert sum(plain.mix.values()) < 0.92 * sum(rows.mix.values())
    assert plain.mix["fp32"] + plain.packed < 0.75 * (rows.mix["fp32"] + rows.packed)
    assert plain.registers <= rows.registers
    assert plain.mix["mufu"] == rows.mix["mufu"]


@each_device
@everywhere
def test_the_column_sweep_has_one_product_and_fewer_instructions_than_attention(by_place, capability, width):
    by_case = {a.case: a for a in by_place[capability, width] if a.kernel != "edges_kernel"}
    sweep, plain = by_case["received"], by_case["plain"]
    assert products(sweep) / sweep.pairs == products(plain) / plain.pairs / 2
    for part in ("mufu", "alu", "memory"):
        assert sweep.mix[part] * sweep.warps / sweep.pairs < plain.mix[part] * plain.warps / plain.pairs, part
    polynomials = sweep.constants["QUARTERS"] / (4 * sweep.constants["UNROLL"])
    assert sweep.mix["mufu"] * sweep.warps * 32 == sweep.pairs * (1 - polynomials)
    assert polynomials == {80: 0, 90: 5 / 16 if width == 64 else 1 / 4, 100: 3 / 8}[capability]


def test_the_page_has_what_the_kernels_compile_to(artefacts):
    page = PAGE.read_text(encoding="utf-8")
    if f"{versions()}." not in page:
        pytest.skip(f"docs/kernels.md was written with other versions than {versions()}")
    lines = page.splitlines()
    assert [line for line in table(artefacts) if line not in lines] == []
