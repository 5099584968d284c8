"""Predicted cycles, by hand."""

from __future__ import annotations

import pytest

from probe.benchmarks.artefacts.build import Artefact
from probe.benchmarks.artefacts.predict import apart, busy, causal_pairs, overlapped, swept_pairs


def artefact(**changes) -> Artefact:
    """A pass over 64 x 32 pairs by 4 warps, 16 pairs a thread."""
    made = {
        "case": "plain",
        "kernel": "forward_kernel",
        "capability": 90,
        "width": 64,
        "warps": 4,
        "constants": {"ROWS": 64, "COLS": 32, "DIMS": 64, "VALUE_DIMS": 128},
        "registers": 100,
        "shared": 1000,
        "spilled": 0,
        "products": 4,
        "loops": 1,
        "mix": {"tensor": 4, "mufu": 16, "fp32": 64, "alu": 32, "memory": 4, "other": 8},
        "copies": 2,
        "shared_bytes": 1024,
        "multiplies": 0,
        "packed": 0,
    }
    return Artefact(**made | changes)


def test_each_part_by_hand():
    """Of 2,048 pairs on an H100, in cycles: products 2048 * 192 / 2048, exponentials 128 * 16 / 16, and so on."""
    cycles = {part: each * 2.048 for part, each in busy(artefact()).items()}
    assert cycles == pytest.approx(
        {"products": 192, "exponentials": 128, "fp32": 64, "alu": 64, "issue": 128, "shared memory": 32}
    )


def test_the_busiest_part_decides_or_the_products_and_the_busiest_of_the_rest():
    assert overlapped(artefact()) == pytest.approx(192 / 2.048)
    assert apart(artefact()) == pytest.approx((192 + 128) / 2.048)


def test_a_packed_instruction_starts_once_and_works_twice():
    packed = busy(artefact(packed=20))
    assert packed["fp32"] * 2.048 == pytest.approx(64 + 20)
    assert packed["issue"] == busy(artefact())["issue"]


def test_a_pass_may_hold_several_tiles():
    one, two = artefact(), artefact(constants=artefact().constants | {"UNROLL": 2})
    assert two.pairs == 2 * one.pairs
    assert busy(two)["issue"] == busy(one)["issue"] / 2
    assert busy(two)["products"] == busy(one)["products"]


def test_older_devices_multiply_and_add_more_slowly():
    older, newer = busy(artefact(capability=80)), busy(artefact(capability=100))
    assert older["products"] == 4 * newer["products"]
    assert older["fp32"] == 2 * newer["fp32"]
    assert older["exponentials"] == newer["exponentials"]


def test_plain_attention_computes_whole_tiles_up_to_the_diagonal():
    """16 queries of 4 heads in the 64 rows of a tile: blocks that end at 16, 32 and 40 need 1, 1 and 2 tiles."""
    assert causal_pairs(artefact(), 40, pack=4) == 16 * 32 * (1 + 1 + 2)


def test_the_column_sweep_computes_whole_passes_and_the_rows_before_them():
    """Blocks of 32 keys, of 100 rows, in passes of 32: two passes end at row 100 for the first block, and so on."""
    edges = artefact(constants={"ROWS": 16, "COLS": 16, "BLOCK": 32, "STEP": 32})
    before = [(48, 32), (48, 32), (48, 32), (16,)]  # rows for each 16 keys of a block, in tiles of 16
    assert swept_pairs(edges, 100) == ((64 + 32) * 32, 16 * sum(map(sum, before)))
