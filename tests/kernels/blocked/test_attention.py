"""The blocked implementation against the reference, with blocks so small that every shape needs several."""

# A statistic that is None where a test reads it fails that test.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.blocked import attention as blocked
from probe.kernels.contract import Band, Mask, Request

# with one of these budgets (bytes of scores), blocks have one row, a few, or all; one KV head or several texts
BUDGETS = [4, 600, 3000, 20_000, None]


def both(query, key, value, *, budget=None, **options):
    options = {"mask": Mask(), "scale": 0.35, "softcap": None, "sinks": None, "request": Request()} | options
    return (
        blocked.attend(query, key, value, budget=budget, **options),
        reference.attend(query, key, value, **options),
    )


def everything(keys: int, **changes) -> Request:
    sets = torch.zeros(1, 1, 3, keys, dtype=torch.bool)
    sets[0, 0, 0, :2] = True
    sets[0, 0, 1, ::3] = True
    sets[0, 0, 2, 2:] = True
    defaults = {
        "lse": True,
        "entropy": True,
        "distance": True,
        "windowed_distance": 10,
        "top": min(3, keys),
        "sets": sets,
        "partial": True,
        "received": Band(),
        "pooled": (7, 5),
    }
    return Request(**defaults | changes)


@st.composite
def cases(draw):
    """Any shape, mask, request and budget; masks and sets are random tensors of a drawn seed."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, keys = draw(st.sampled_from([1, 2, 7, 33, 70])), draw(st.sampled_from([1, 3, 16, 65, 130]))
    heads, seed = kv_heads * group, draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)

    def some(*shape, share=0.4):
        return torch.rand(shape, generator=generator) > share

    padding = draw(st.sampled_from(["none", "none", "left", "right", "holes"]))
    length = torch.randint(0, keys + 1, (batch, 1), generator=generator)
    kept = {
        "none": None,
        "left": torch.arange(keys) >= length,
        "right": torch.arange(keys) < length,
        "holes": some(batch, keys),
    }[padding]
    pairs = draw(st.sampled_from([None, None, (1, 1), (batch, 1), (1, heads), (batch, heads)]))
    mask = Mask(
        causal=draw(st.sampled_from([True, True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 6, 40, 1000])),
        keys=kept,
        pairs=None if pairs is None else some(*pairs, queries, keys),
        first_query=draw(st.sampled_from([0, keys - queries, 5, -4, 100])),
        first_key=draw(st.sampled_from([0, 0, 9])),
    )
    lo = draw(st.sampled_from([0, 0, 3, -3]))
    band = Band(
        lo=lo,
        hi=draw(st.sampled_from([None, lo, lo + 4, lo + 60])),
        start=draw(st.sampled_from([None, 8])),
        stop=draw(st.sampled_from([None, 40])),
    )
    sets = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), draw(st.sampled_from([1, 4])), keys)
    request = Request(
        lse=draw(st.booleans()),
        entropy=draw(st.booleans()),
        distance=draw(st.booleans()),
        windowed_distance=draw(st.sampled_from([None, 1, 10, 50])),
        top=min(keys, draw(st.sampled_from([0, 1, 3, 70]))),
        sets=draw(st.sampled_from([None, some(*sets, share=0.9), some(*sets, share=0.3)])),
        received=draw(st.sampled_from([None, band])),
        pooled=draw(st.sampled_from([None, (4, 9), (512, 512), (1, 30)])),
    )
    if request.sets is not None:
        request = replace(request, partial=draw(st.booleans()))
    return {
        "shape": {"batch": batch, "kv_heads": kv_heads, "group": group, "queries": queries, "keys": keys},
        "value_dim": draw(st.sampled_from([8, 3])),
        "seed": seed,
        "mask": mask,
        "request": request,
        "softcap": draw(st.sampled_from([None, None, 2.5])),
        "sinks": torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
        "budget": draw(st.sampled_from(BUDGETS)),
    }


@given(case=cases())
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the poison is the same in every example
)
def test_equals_the_reference(poisoned_empty, sample, same_statistics, case):
    names = ("mask", "request", "softcap", "sinks", "budget")
    tensors = sample(**case["shape"], value_dim=case["value_dim"], seed=case["seed"])
    (output, found), (expected, exact) = both(*tensors, **{name: case[name] for name in names})
    torch.testing.assert_close(output.double(), expected, atol=2e-5, rtol=2e-5)
    same_statistics(found, exact, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("mask", [Mask(), Mask(window=300), Mask(causal=False)], ids=["causal", "window", "full"])
def test_long_rows_in_whole_blocks(poisoned_empty, sample, same_statistics, mask):
    """Several blocks of 128 rows, as in use, and a ragged end."""
    tensors = sample(kv_heads=2, group=2, queries=530, keys=530, width=16)
    (output, found), (expected, exact) = both(*tensors, mask=mask, request=everything(530, pooled=(50, 60)))
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    # ahead and behind, distances of both signs cancel: 530 x float32's precision remains
    same_statistics(found, exact, atol=2e-5 if mask.causal else 2e-4)


@pytest.mark.parametrize("budget", [600, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(sample, same_statistics, dtype, budget):
    """Statistics as exact as float32's for the rounded inputs; the output is off by its own rounding alone."""
    tensors = sample(kv_heads=2, group=2, queries=70, keys=90, dtype=dtype)
    mask = Mask(first_query=20)
    (output, found), (expected, exact) = both(*tensors, mask=mask, request=everything(90), budget=budget)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=torch.finfo(dtype).eps)
    same_statistics(found, exact)


def test_float64_stays_float64(sample):
    tensors = sample(kv_heads=2, queries=70, keys=70, dtype=torch.float64)
    (output, found), (expected, _) = both(*tensors, request=everything(70), budget=5000)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    assert found.entropy.dtype == torch.float32


@pytest.mark.parametrize("sinks", [None, torch.tensor([-5.0, 0.0, 20.0, 40.0])], ids=["", "sinks"])
@pytest.mark.parametrize("peak", [14.0, 20.0, 60.0])
def test_entropy_of_a_row_with_one_weight_of_nearly_1(sample, peak, sinks):
    """Where lse and sum p s are nearly equal: both are of the order of `peak`, the entropy of 1e-3 and less."""
    query, key, value = sample(kv_heads=1, group=4, queries=150, keys=150, width=16, sharp=1.0)
    query[..., 0], key[..., 0] = 1.0, 0.0
    key[:, :, 3, 0] = 1.0
    query[..., 0] *= peak / 0.35
    key[..., 1:] *= 0.3
    request = Request(entropy=True, top=1, distance=True)
    (_, found), (_, exact) = both(query, key, value, sinks=sinks, request=request)
    if sinks is None and peak > 14:
        assert (exact.top_weight[:, :, 3:] > 0.9999).float().mean() > 0.9
    torch.testing.assert_close(found.entropy.double(), exact.entropy, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.distance.double(), exact.distance, atol=1e-5, rtol=1e-5)


def test_short_distances_far_into_a_text(sample):
    """A head that looks one token back does so to 1e-6 at position 3000 as at position 1."""
    keys = 3000
    angle = torch.arange(keys) * 2.4  # the last six keys are far apart on the circle
    key = torch.stack([angle.cos(), angle.sin()], -1)[None, None]
    query = 400 * torch.stack([(angle - 2.4).cos(), (angle - 2.4).sin()], -1)[None, None]
    mask = Mask(window=6)
    (_, found), (_, exact) = both(query, key, key, mask=mask, request=Request(distance=True, windowed_distance=3))
    assert exact.distance[0, 0, 5:].max() < 1.5
    torch.testing.assert_close(found.distance.double(), exact.distance, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.windowed_distance.double(), exact.windowed_distance, atol=2e-6, rtol=0)


def test_ties_at_every_k_and_width():
    """Scores of three values only: the order must be by score, then by key."""
    for keys in (5, 64, 65, 130, 200):
        generator = torch.Generator().manual_seed(keys)
        key = torch.randint(0, 3, (1, 1, keys, 1), generator=generator).float()
        query = torch.ones(1, 2, keys, 1)
        for k in (1, 2, 7, keys):
            k = min(k, keys)
            (_, found), _ = both(query, key, key, request=Request(top=k))
            for i in range(0, keys, 9):
                expected = sorted(range(i + 1), key=lambda j: (-key[0, 0, j, 0].item(), j))[:k]
                assert found.top_key[0, 0, i].tolist() == expected + [-1] * (k - len(expected))


NO_DISTANCE = everything(1200, partial=False, distance=False, windowed_distance=None)


@pytest.mark.parametrize(
    ("mask", "request_", "value_dim", "most"),
    [
        (Mask(), everything(1200, partial=False), 8, 110_000),
        (Mask(window=200), everything(1200), 8, 120_000),
        (Mask(causal=False), NO_DISTANCE, 8, 110_000),
        (Mask(), Request(), 7, 110_000),
    ],
    ids=[
        "causal",
        "window",
        "full",
        "widths differ",
    ],
)
def test_no_map_is_ever_made(sample, largest, mask, request_, value_dim, most):
    """A map has 4 x 1200 x 1200 elements, the budget is 100,000 and the output 38,400."""
    tensors = sample(kv_heads=2, group=2, queries=1200, keys=1200, value_dim=value_dim)
    with torch.no_grad(), largest() as seen:
        blocked.attend(*tensors, mask=mask, scale=0.35, softcap=None, sinks=None, request=request_, budget=400_000)
    assert 0 < seen.elements <= most


@pytest.mark.parametrize("budget", [600, 20_000])
@pytest.mark.parametrize("mask", [Mask(first_query=30), Mask(causal=False), Mask(window=33), Mask(first_query=-9)])
def test_pool_and_tile_equal_the_reference(poisoned_empty, sample, mask, budget):
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=270, keys=300)
    options = {"mask": mask, "scale": 0.35, "softcap": 7.0}
    _, found = reference.attend(query, key, value, sinks=None, request=Request(lse=True), **options)
    lse = found.lse.float()
    pooled = blocked.pool(query, key, lse, shape=(40, 25), budget=budget, **options)
    torch.testing.assert_close(
        pooled.double(), reference.pool(query, key, lse, shape=(40, 25), **options), atol=1e-6, rtol=1e-5
    )
    for rows, cols in ((range(270), range(300)), (range(120, 265, 5), range(7, 290, 2)), (range(3, 4), range(3, 5))):
        mine = blocked.tile(query, key, lse, rows=rows, cols=cols, **options)
        exact = reference.tile(query, key, lse, rows=rows, cols=cols, **options)
        torch.testing.assert_close(mine.double(), exact, atol=1e-6, rtol=1e-5)


def test_inputs_laid_out_as_models_do(sample, same_statistics):
    """Heads side by side in memory: the numbers are those of contiguous inputs, and the inputs stay as they were."""
    tensors = sample(batch=2, kv_heads=2, group=2, queries=33, keys=33)
    apart = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    copies = [t.clone() for t in apart]
    (output, found), _ = both(*apart, request=everything(33), budget=3000)
    (expected, exact), _ = both(*tensors, request=everything(33), budget=3000)
    torch.testing.assert_close(output, expected)
    same_statistics(found, exact, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(apart, copies, strict=True))
    assert output.transpose(1, 2).is_contiguous()


def test_a_repeated_call_gives_the_same_numbers(sample):
    tensors = sample(kv_heads=3, group=3, queries=200, keys=200, width=64)
    one, other = (both(*tensors, request=everything(200))[0] for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1].entropy, other[1].entropy) and torch.equal(one[1].received, other[1].received)


def test_large_scores_do_not_overflow(sample):
    query, key, value = sample(queries=40, keys=40, sharp=1e4)
    (output, found), (expected, exact) = both(query, key, value, request=Request(lse=True, entropy=True))
    torch.testing.assert_close(output.double(), expected, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.lse.double(), exact.lse, atol=0, rtol=1e-5)
    assert math.isfinite(found.entropy.sum().item())
