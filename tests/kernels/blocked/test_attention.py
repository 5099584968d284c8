"""The blocked implementation against the reference, with blocks so small that every shape needs several."""

# A statistic that is None where a test reads it fails that test.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.blocked import attention as blocked
from probe.kernels.contract import Mask, Request
from tests.kernels.cases import cases, everything, scored, thorough

# with one of these budgets (bytes of scores), blocks have one row, a few, or all; one KV head or several texts
BUDGETS = [4, 600, 3000, 20_000, None]


def both(query, key, value, *, budget=None, **options):
    options = scored(**options)
    return (
        blocked.attend(query, key, value, budget=budget, **options),
        reference.attend(query, key, value, **options),
    )


@given(case=cases(), budget=st.sampled_from(BUDGETS))
@settings(thorough, max_examples=120)
def test_equals_the_reference(poisoned_empty, sample, same_statistics, case, budget):
    tensors = sample(**case.pop("tensors"))
    (output, found), (expected, exact) = both(*tensors, budget=budget, **case)
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
        blocked.attend(*tensors, budget=400_000, **scored(mask, request=request_))
    assert 0 < seen.elements <= most


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
    options = scored(request=everything(200))
    one = blocked.attend(*tensors, **options)
    other = blocked.attend(*tensors, **options)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1].entropy, other[1].entropy) and torch.equal(one[1].received, other[1].received)


def test_large_scores_do_not_overflow(sample):
    query, key, value = sample(queries=40, keys=40, sharp=1e4)
    (output, found), (expected, exact) = both(query, key, value, request=Request(lse=True, entropy=True))
    torch.testing.assert_close(output.double(), expected, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.lse.double(), exact.lse, atol=0, rtol=1e-5)
    assert math.isfinite(found.entropy.sum().item())
