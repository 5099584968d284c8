"""The C++ implementation against the reference: rows, cells and tiles that end everywhere but at the end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.attend import attend
from probe.kernels.contract import Band, Mask, Request
from probe.kernels.native import attention as native
from probe.kernels.native.build import unavailable
from tests.kernels.cases import cases, everything, scored, thorough

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.skipif(unavailable() is not None, reason=f"the native implementation {unavailable()}"),
]


def both(*tensors, rows=None, **options):
    options = scored(**options)
    return native.attend(*tensors, rows=rows, **options), reference.attend(*tensors, **options)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@given(
    case=cases(
        queries=(1, 2, 7, 33, 70, 150), keys=(1, 3, 16, 65, 250, 530), widths=(8, 16, 20), value_dims=(8, 3, 32, 40)
    ),
    rows=st.sampled_from([8, 24, 64]),
)
@settings(thorough, max_examples=250)
def test_equals_the_reference(sample, same_statistics, case, rows):
    tensors = sample(**case.pop("tensors"))
    (output, found), (expected, exact) = both(*tensors, rows=rows, **case)
    close(output, expected, 2e-5)
    same_statistics(found, exact, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("mask", [Mask(), Mask(window=300), Mask(causal=False)], ids=["causal", "window", "full"])
def test_long_rows(sample, same_statistics, mask):
    tensors = sample(kv_heads=1, group=3, queries=1100, keys=1100, width=64, sharp=1.0)
    request = everything(1100, pooled=(50, 60), top=5)
    (output, found), (expected, exact) = both(*tensors, mask=mask, scale=0.125, request=request)
    close(output, expected)
    # ahead and behind, distances of both signs cancel: 1100 x float32's precision remains
    same_statistics(found, exact, atol=2e-5 if mask.causal else 4e-4)


@pytest.mark.parametrize("queries", [1, 2, 3, 9])
def test_few_queries_against_a_long_cache(sample, same_statistics, queries):
    """Their products are taken key by key, the heads of a KV head together."""
    tensors = sample(batch=2, kv_heads=2, group=3, queries=queries, keys=1100, width=64)
    mask = Mask(first_query=1000, keys=torch.arange(1100) >= torch.tensor([[0], [400]]))
    (output, found), (expected, exact) = both(*tensors, mask=mask, request=everything(1100))
    close(output, expected)
    same_statistics(found, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [2, 70])
@pytest.mark.parametrize("partial", [False, True])
def test_half_precision_is_computed_in_float32(sample, same_statistics, dtype, queries, partial):
    """Statistics as exact as float32's for the rounded inputs; the output is off by its own rounding alone.

    And, where bfloat16 is multiplied by pairs, by that of the weights: widths are odd, pairs end half full.
    """
    tensors = sample(
        batch=2, kv_heads=2, group=2, queries=queries, keys=291, width=37, value_dim=35, dtype=dtype, sharp=1.0
    )
    options = {"softcap": 20.0, "sinks": torch.tensor([0.0, 1.0, 2.0, 3.0]), "mask": Mask(first_query=221, window=99)}
    request = everything(291, partial=partial)
    (output, found), (expected, exact) = both(*tensors, request=request, scale=0.2, **options)
    assert output.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, atol=1e-5 if partial else eps / 2, rtol=eps)
    same_statistics(found, exact)


@pytest.mark.parametrize("sinks", [None, torch.tensor([-5.0, 0.0, 20.0, 40.0])], ids=["", "sinks"])
@pytest.mark.parametrize("peak", [14.0, 20.0, 60.0])
def test_entropy_of_a_row_with_one_weight_of_nearly_1(sample, peak, sinks):
    """Where lse and sum p s are nearly equal: both are of the order of `peak`, the entropy of 1e-3 and less."""
    query, key, value = sample(group=4, queries=150, keys=150, width=16, sharp=1.0)
    query[..., 0], key[..., 0] = peak / 0.35, 0.0
    key[:, :, 3, 0] = 1.0
    key[..., 1:] *= 0.3
    (_, found), (_, exact) = both(query, key, value, sinks=sinks, request=Request(entropy=True, top=1, distance=True))
    if sinks is None and peak > 14:
        assert (exact.top_weight[:, :, 3:] > 0.9999).float().mean() > 0.9
    torch.testing.assert_close(found.entropy.double(), exact.entropy, atol=1e-6, rtol=1e-5)
    close(found.distance, exact.distance)


def test_received_over_many_rows_keeps_its_digits(sample):
    """Sums of 60,000 weights, in blocks of 8."""
    query, key, value = sample(queries=60_000, keys=3, sharp=0.5)
    (_, found), (_, exact) = both(
        query, key, value, rows=8, mask=Mask(causal=False), request=Request(received=Band(lo=-3))
    )
    torch.testing.assert_close(found.received.double(), exact.received, atol=0, rtol=1e-6)


def test_a_high_cap_changes_little_and_exactly_that(sample):
    """Scores far below the cap, where 1 - exp(-2 x) would cancel."""
    tensors = sample(queries=70, keys=70, width=16)
    (output, found), (expected, exact) = both(*tensors, softcap=3000.0, request=Request(lse=True, entropy=True))
    close(output, expected)
    same = {"atol": 1e-5, "rtol": 1e-6}
    torch.testing.assert_close(found.lse.double(), exact.lse, **same)
    torch.testing.assert_close(found.entropy.double(), exact.entropy, **same)


@pytest.mark.parametrize("k", [1, 2, 7, 300])
def test_ties_go_to_the_lower_key(k):
    """Scores of three values only, over several tiles."""
    keys = 600
    key = torch.randint(0, 3, (1, 1, keys, 1), generator=torch.Generator().manual_seed(k)).float()
    (_, found), _ = both(torch.ones(1, 2, keys, 1), key, key, request=Request(top=k))
    for i in range(0, keys, 37):
        expected = sorted(range(i + 1), key=lambda j: (-key[0, 0, j, 0].item(), j))[:k]
        assert found.top_key[0, 0, i].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize("at", [0, 5, 299])
def test_not_a_number_comes_out_as_one(sample, at):
    """A broken query breaks its row, a broken key the rows that see it; neither is taken for a masked one."""
    query, key, value = sample(queries=300, keys=300, width=16)
    broken = query.clone()
    broken[0, 0, at, 3] = float("nan")
    (output, found), _ = both(broken, key, value, request=Request(entropy=True, lse=True, top=1))
    assert output[0, 0].isnan().any(-1).nonzero()[:, 0].tolist() == [at]
    assert found.lse[0, 0].isnan().nonzero()[:, 0].tolist() == [at]
    key[0, 0, at, 3] = float("nan")
    (output, _), _ = both(query, key, value, request=Request(entropy=True))
    assert output[0, 0].isnan().any(-1).nonzero()[:, 0].tolist() == list(range(at, 300))


def test_inputs_laid_out_as_models_do(sample, same_statistics):
    """Heads side by side in memory: the numbers are those of contiguous inputs, and the inputs stay as they were."""
    tensors = sample(batch=2, kv_heads=2, group=2, queries=33, keys=33, width=32)
    apart = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    strided = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    copies = [t.clone() for t in apart]
    (expected, exact), _ = both(*tensors, request=everything(33))
    for inputs in (apart, strided):
        (output, found), _ = both(*inputs, request=everything(33))
        close(output, expected.double(), 1e-6)
        same_statistics(found, exact, atol=1e-6)
        assert output.transpose(1, 2).is_contiguous()
    assert all(torch.equal(one, other) for one, other in zip(apart, copies, strict=True))


def test_a_repeated_call_gives_the_same_numbers(sample):
    tensors = sample(kv_heads=3, group=3, queries=200, keys=200, width=64)
    one, other = (both(*tensors, request=everything(200))[0] for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(getattr(one[1], name), getattr(other[1], name)) for name in one[1].__slots__)


def test_the_number_of_threads_is_torchs_and_changes_nothing(sample, same_statistics):
    tensors = sample(kv_heads=3, group=3, queries=200, keys=200, width=64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(both(*tensors, request=everything(200))[0])
    finally:
        torch.set_num_threads(before)
    for output, statistics in found[1:]:
        assert torch.equal(output, found[0][0])
        same_statistics(statistics, found[0][1], atol=1e-7, rtol=1e-6)


def test_no_map_is_ever_made(sample, largest):
    """A map has 4 x 1200 x 1200 elements."""
    tensors = sample(kv_heads=2, group=2, queries=1200, keys=1200)
    with torch.no_grad(), largest() as seen:
        native.attend(*tensors, **scored(request=everything(1200, partial=False)))
    assert 0 < seen.elements <= 40_000


def test_large_scores_do_not_overflow(sample):
    query, key, value = sample(queries=40, keys=40, sharp=1e4)
    (output, found), (expected, exact) = both(query, key, value, request=Request(lse=True, entropy=True))
    torch.testing.assert_close(output.double(), expected, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.lse.double(), exact.lse, atol=0, rtol=1e-5)
    assert found.entropy.isfinite().all()


def test_what_it_cannot_do_it_refuses(sample):
    with pytest.raises(ValueError, match=r"native: computes in float32, not in torch.float64"):
        attend(*sample(dtype=torch.float64), request=Request(lse=True), implementation="native")
