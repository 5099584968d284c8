"""Exact rectangles of the map in the interpreter, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.contract import Mask, Request, Scoring
from probe.kernels.triton.tile import tile

pytest.importorskip("triton")


def spans(size: int):
    """Non-empty ascending ranges in [0, size)."""
    start = st.integers(0, size - 1)
    return start.flatmap(
        lambda a: st.builds(range, st.just(a), st.integers(a + 1, size), st.sampled_from([1, 1, 2, 7]))
    )


@st.composite
def cases(draw):
    """Any rectangle of a map of 70 x 90, under any mask."""
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    mask = Mask(
        causal=draw(st.booleans()),
        window=draw(st.sampled_from([None, None, 5, 40])),
        keys=draw(st.sampled_from([None, torch.rand(2, 90, generator=generator) > 0.4])),
        pairs=draw(st.sampled_from([None, torch.rand(1, 2, 70, 90, generator=generator) > 0.4])),
        first_query=draw(st.sampled_from([0, 20, -5, 80])),
        first_key=draw(st.sampled_from([0, 3])),
    )
    return {
        "seed": seed,
        "rows": draw(spans(70)),
        "cols": draw(spans(90)),
        "mask": mask,
        "softcap": draw(st.sampled_from([None, 2.5])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        "width": draw(st.sampled_from([16, 24])),
    }


@pytest.mark.slow
@given(case=cases())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_equals_the_reference(poisoned_empty, sample, case):
    tensors = {name: case.pop(name) for name in ("seed", "dtype", "width")}
    query, key, value = sample(batch=2, kv_heads=1, group=2, queries=70, keys=90, **tensors)
    options = {"scoring": Scoring(case["mask"], 0.35, case["softcap"])}
    _, exact = reference.attend(query, key, value, sinks=None, request=Request(lse=True), **options)
    lse = exact.lse.float()
    found = tile(query, key, lse, rows=case["rows"], cols=case["cols"], block=(16, 32), **options)
    expected = reference.tile(query, key, lse, rows=case["rows"], cols=case["cols"], **options)
    torch.testing.assert_close(found.double(), expected, atol=1e-9, rtol=1e-5)


def test_lse_of_any_layout_and_precision(sample):
    """An lse that a capture kept in float64, of heads that lie apart."""
    query, key, value = sample(kv_heads=2, queries=40, keys=40)
    options = {"scoring": Scoring(Mask(), 0.35)}
    _, exact = reference.attend(query, key, value, sinks=None, request=Request(lse=True), **options)
    apart = exact.lse.transpose(1, 2).contiguous().transpose(1, 2)
    found = tile(query, key, apart, rows=range(40), cols=range(40), block=(16, 16), **options)
    expected = reference.tile(query, key, exact.lse, rows=range(40), cols=range(40), **options)
    torch.testing.assert_close(found.double(), expected, atol=1e-9, rtol=1e-5)


def test_a_learned_sink_is_in_the_lse(sample):
    query, key, value = sample(kv_heads=1, group=2, queries=20, keys=20)
    options = {"scoring": Scoring(Mask(), 0.35)}
    sinks = torch.tensor([0.5, 2.0])
    _, exact = reference.attend(query, key, value, sinks=sinks, request=Request(lse=True), **options)
    found = tile(query, key, exact.lse.float(), rows=range(20), cols=range(20), block=(16, 16), **options)
    assert exact.lse is not None
    share = 1 - (sinks[:, None] - exact.lse).exp()
    torch.testing.assert_close(found.double().sum(-1), share, atol=1e-6, rtol=1e-5)
