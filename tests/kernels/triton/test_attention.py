"""The Triton kernels in the interpreter, against the reference, with tiles so small that every shape needs several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.contract import Mask, Request
from probe.kernels.triton import attention as in_triton
from tests.kernels.cases import cases, thorough

pytest.importorskip("triton")
from probe.kernels.triton.tiles import Tiles

pytestmark = pytest.mark.usefixtures("poisoned_empty")
SMALL = Tiles(rows=16, cols=16, warps=4, stages=1)
TILES = [SMALL, replace(SMALL, rows=32), replace(SMALL, cols=32), replace(SMALL, splits=3)]


def both(*tensors, tiles=SMALL, **options):
    options = {"mask": Mask(), "scale": 0.35, "softcap": None, "sinks": None, "request": Request()} | options
    return in_triton.attend(*tensors, tiles=tiles, **options), reference.attend(*tensors, **options)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@given(
    case=cases(queries=(1, 2, 7, 33, 45), keys=(1, 3, 16, 40, 70), widths=(16, 24), value_dims=(16, 3)),
    tiles=st.sampled_from(TILES),
)
@settings(thorough, max_examples=60)
def test_equals_the_reference(sample, same_statistics, case, tiles):
    """What belongs to keys and to maps has tests of its own."""
    case["request"] = replace(case["request"], received=None, pooled=None)
    tensors = sample(**case.pop("tensors"))
    (output, found), (expected, exact) = both(*tensors, tiles=tiles, **case)
    close(output, expected, 2e-5)
    same_statistics(found, exact, atol=2e-5, rtol=2e-5)
