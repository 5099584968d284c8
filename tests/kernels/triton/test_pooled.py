"""Pooled maps in the interpreter, against the float64 reference, for tiles of every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.contract import Mask, Request, Scoring
from probe.kernels.triton.pooled import pool

pytest.importorskip("triton")

# tiles of one pair, ragged ones, ones taller and wider than a block of 16 x 32, whole rows and columns, the whole map
SHAPES = [(512, 512), (70, 90), (30, 40), (7, 5), (40, 2), (1, 30), (4, 90), (3, 1), (1, 1)]


@st.composite
def cases(draw):
    """Any mask and tile size over maps of a few sizes."""
    queries, keys = draw(st.sampled_from([(45, 70), (33, 33), (1, 77), (65, 16)]))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    mask = Mask(
        causal=draw(st.sampled_from([True, True, False])),
        window=draw(st.sampled_from([None, None, 5, 40])),
        keys=draw(st.sampled_from([None, torch.rand(2, keys, generator=generator) > 0.4])),
        pairs=draw(st.sampled_from([None, None, torch.rand(1, 2, queries, keys, generator=generator) > 0.4])),
        first_query=draw(st.sampled_from([0, keys - queries, -5, 80])),
        first_key=draw(st.sampled_from([0, 3])),
    )
    return {
        "sample": {"queries": queries, "keys": keys, "seed": seed, "width": draw(st.sampled_from([16, 24]))}
        | {"dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))},
        "shape": draw(st.sampled_from(SHAPES)),
        "mask": mask,
        "softcap": draw(st.sampled_from([None, 2.5])),
    }


def check(tensors, shape, mask, softcap=None):
    query, key, value = tensors
    options = {"scoring": Scoring(mask, 0.35, softcap)}
    _, exact = reference.attend(query, key, value, sinks=None, request=Request(lse=True), **options)
    lse = exact.lse.float()
    found = pool(query, key, lse, shape=shape, block=(16, 32), **options)
    torch.testing.assert_close(
        found.double(), reference.pool(query, key, lse, shape=shape, **options), atol=1e-9, rtol=1e-5
    )


@pytest.mark.slow
@given(case=cases())
@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_equals_the_reference(poisoned_empty, sample, case):
    tensors = sample(batch=2, kv_heads=1, group=2, **case.pop("sample"))
    check(tensors, **case)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile_size(poisoned_empty, sample, shape):
    check(sample(kv_heads=1, group=2, queries=70, keys=90), shape, mask=Mask(first_query=17))


def test_a_planted_weight_shows_in_its_own_tile_alone(pointing):
    """Rows that look at themselves, but for row 41, which looks at key 7; tiles of 9 x 9."""
    target = list(range(60))
    target[41] = 7
    query, key = pointing(target, 60)
    lse = torch.full((1, 1, 60), 1000.0)
    found = pool(query, key, lse, shape=(7, 7), scoring=Scoring(Mask(), 1.0), block=(16, 16))
    expected = torch.eye(7)
    expected[41 // 9, 7 // 9] = 1
    torch.testing.assert_close(found[0, 0], expected, atol=1e-6, rtol=0)
