"""The page about artefacts, from artefacts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe.benchmarks.artefacts.build import Artefact
from probe.benchmarks.artefacts.page import page, published, verdict, whole_texts

PLAIN = Artefact(
    case="plain",
    kernel="forward_kernel",
    capability=90,
    width=64,
    warps=4,
    constants={"ROWS": 64, "COLS": 32, "DIMS": 64, "VALUE_DIMS": 64},
    registers=100,
    shared=32 * 1024,
    spilled=0,
    products=4,
    loops=2,
    mix={"tensor": 4, "mufu": 16, "fp32": 40, "alu": 20, "memory": 4, "other": 16},
    copies=2,
    shared_bytes=0,
    multiplies=0,
    packed=0,
)


def artefacts(fp32_of_rows: int) -> list[Artefact]:
    """Plain and with statistics: products keep 128 cycles busy, exponentials 128, issue as many as instructions."""
    rows = replace(PLAIN, case="rows", mix=PLAIN.mix | {"fp32": fp32_of_rows}, registers=120)
    sweep = {"constants": {"ROWS": 64, "COLS": 32, "DIMS": 64}, "mix": PLAIN.mix | {"mufu": 8, "fp32": 20}}
    received = replace(PLAIN, case="received", **sweep)
    edges = {"ROWS": 32, "COLS": 64, "BLOCK": 64, "STEP": 64, "DIMS": 64}
    slow = replace(received, kernel="edges_kernel", constants=edges, mix=received.mix | {"mufu": 100})
    return [PLAIN, rows, replace(rows, case="rows and 4 sets"), received, slow]


@pytest.mark.parametrize(
    ("fp32", "words"),
    [
        (68, "1.00, met (overlapped 1.00)"),
        (90, "1.09, met apart (overlapped 1.17)"),
        (200, "1.52, missed (overlapped 2.03)"),
    ],
)
def test_a_target_is_met_when_both_ways_of_counting_meet_it(fp32, words):
    """Issue takes 60 cycles and one more for each FP32 instruction; all else 128 at most, and products 128."""
    rows, columns = verdict(artefacts(fp32)).splitlines()
    assert rows.endswith(f"H100 64: {words}.")
    assert columns.endswith("H100 64: 1.53, met (overlapped 1.56).")


def test_published_speeds_in_cycles():
    """On an H100 at 64, products alone take 62.5 cycles at 989 TFLOP/s, and so 153 at 403."""
    assert "| H100 | 64 | Triton | 403 | 153 |" in published()
    assert "| B200 | 128 | FlashAttention-4 | 1613 | 87 |" in published()


def test_the_page_has_every_kernel_and_says_that_nothing_ran():
    text = page(artefacts(90), "Triton 1.2.3")
    assert "Nothing here ran on a GPU" in text and "Triton 1.2.3" in text
    assert "| rows: `forward_kernel` | H100 (9.0) | 64 | 64 x 32 | 4 | 120 | 32 of 227 | 0 | 2 |" in text
    assert "| received: `forward_kernel` | H100 (9.0) | 64 | 0.25 | 0.50 | 1.25 | 1.25 | 0.25 | 1.00 | 4.50 |" in text
    assert "| H100 (9.0) | 64 | 125 |" in text and "| 62, products |" in text


def test_whole_texts_count_the_edges_of_the_mask():
    """Of 1,024 keys, 16 blocks of 64: 120 passes of 64 rows at 136 cycles for 2,048 pairs, 16 tiles at the edge at
    864. Plain attention: 16 queries a tile, 2 + 4 + ... + 64 tiles of 32 keys at 256."""
    ratio = 1 + 64 * 64 * (120 * 136 + 16 * 864) / (16 * 32 * 1056 * 256)
    (row,) = (line for line in whole_texts(artefacts(90)).splitlines() if line.startswith("| H100"))
    assert row.startswith(f"| H100 (9.0) | 64 | {ratio:.2f} |") and row.endswith("| 1.54 |")
