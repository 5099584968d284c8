"""Column sums in the interpreter, against the float64 reference, with tiles so small that every shape needs several."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.contract import Band, Mask, Request, Scoring
from probe.kernels.triton.columns import ColumnTiles, column_tiles, received
from probe.kernels.triton.exponentials import exp2_polynomial, split_columns

triton = pytest.importorskip("triton")
tl = triton.language

SMALL = ColumnTiles(rows=16, cols=16, warps=4, stages=1, edge=16)
UNROLLED = SMALL._replace(unroll=3, folded=True)
POLYNOMIAL = SMALL._replace(cols=32, quarters=1)
POLYNOMIALS = POLYNOMIAL._replace(unroll=2, quarters=3, folded=True)
TILES = [SMALL, UNROLLED, POLYNOMIAL, POLYNOMIALS]
SHOWN = torch.rand(1, 2, 110, 120, generator=torch.Generator().manual_seed(0)) > 0.4


@st.composite
def cases(draw):
    """Any shape, mask and band; masks are random tensors of a drawn seed."""
    batch, kv_heads, group = draw(st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 1, 2)]))
    queries, keys = draw(st.sampled_from([1, 7, 33, 70])), draw(st.sampled_from([1, 16, 53, 90]))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.rand(shape, generator=generator) > 0.4

    length = torch.randint(0, keys + 1, (batch, 1), generator=generator)
    kept = {
        "none": None,
        "left": torch.arange(keys) >= length,
        "right": torch.arange(keys) < length,
        "holes": some(batch, keys),
    }[draw(st.sampled_from(["none", "none", "left", "right", "holes"]))]
    heads = kv_heads * group
    pairs = draw(st.sampled_from([None, None, (1, 1), (batch, heads)]))
    mask = Mask(
        causal=draw(st.sampled_from([True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 6, 40, 1000])),
        keys=kept,
        pairs=None if pairs is None else some(*pairs, queries, keys),
        first_query=draw(st.sampled_from([0, keys - queries, 5, -4, 100])),
        first_key=draw(st.sampled_from([0, 0, 9])),
    )
    lo = draw(st.sampled_from([0, 0, 3, -3, 10**12]))
    band = Band(
        lo=lo,
        hi=draw(st.sampled_from([None, lo, lo + 4, lo + 60])),
        start=draw(st.sampled_from([None, 8])),
        stop=draw(st.sampled_from([None, 40])),
    )
    shape = {"batch": batch, "kv_heads": kv_heads, "group": group, "queries": queries, "keys": keys}
    return shape, {
        "width": draw(st.sampled_from([8, 16, 24])),
        "seed": seed,
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        "sinks": torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
        "mask": mask,
        "band": band,
        "softcap": draw(st.sampled_from([None, None, 2.5])),
        "tiles": draw(st.sampled_from(TILES)),
    }


def both(query, key, value, *, band, tiles=SMALL, sinks=None, mask=Mask(), softcap=None):  # noqa: B008
    """Means and numbers of rows, from the kernel and as they are defined."""
    scoring, request = Scoring(mask, 0.35, softcap), Request(lse=True, received=band)
    _, exact = reference.attend(query, key, value, sinks=sinks, request=request, scoring=scoring)
    return received(query, key, exact.lse.float(), band=band, tiles=tiles, scoring=scoring), exact


@pytest.mark.slow
@given(case=cases())
@settings(
    max_examples=35,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the poison is the same in every example
)
def test_equals_the_reference(poisoned_empty, sample, case):
    shape, options = case
    tensors = sample(**shape, **{name: options.pop(name) for name in ("width", "seed", "dtype")})
    (found, rows), exact = both(*tensors, **options)
    assert torch.equal(rows, exact.received_rows)
    assert torch.equal(found.isnan(), exact.received.isnan())
    torch.testing.assert_close(found.double().nan_to_num(-1), exact.received.nan_to_num(-1), atol=1e-7, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "band", "tiles"),
    [
        (Mask(), Band(), UNROLLED),
        (Mask(), Band(), POLYNOMIAL),
        (Mask(window=90), Band(lo=5, hi=80), SMALL),
        (Mask(window=90), Band(lo=5, hi=80), POLYNOMIALS),
        (Mask(causal=False), Band(lo=-40, hi=90, start=20), UNROLLED),
        (Mask(causal=False), Band(lo=-40, hi=90, start=20), POLYNOMIALS),
        (Mask(pairs=SHOWN), Band(), SMALL),
        (Mask(pairs=SHOWN), Band(), POLYNOMIAL),
    ],
)
def test_blocks_that_are_cut_at_both_ends_and_whole_between(poisoned_empty, sample, mask, band, tiles):
    """Long enough for whole tiles between those that an end of the interval cuts; half precision as on a GPU."""
    tensors = sample(kv_heads=1, group=2, queries=110, keys=120, width=16, dtype=torch.float16)
    (found, _), exact = both(*tensors, mask=mask, band=band, tiles=tiles)
    torch.testing.assert_close(found.double(), exact.received, atol=1e-8, rtol=1e-5, equal_nan=True)
    assert exact.received.isnan().float().mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("window", [16, 30])
@pytest.mark.parametrize("ahead", range(16))
def test_every_way_that_the_interval_may_lie_on_tiles(sample, window, ahead):
    """Off by one row, a tile that an end of the interval cuts would count as whole."""
    tensors = sample(queries=40, keys=40, width=8)
    mask = Mask(first_query=ahead, window=window)
    (found, _), exact = both(*tensors, mask=mask, band=Band(start=ahead + 3))
    torch.testing.assert_close(found.double(), exact.received, atol=1e-8, rtol=1e-5, equal_nan=True)


def test_a_row_whose_lse_is_minus_infinity_gives_nothing(sample):
    query, key, value = sample(queries=20, keys=20)
    scoring = Scoring(Mask(), 0.35)
    options = {"scoring": scoring, "band": Band(), "tiles": SMALL}
    _, exact = reference.attend(query, key, value, sinks=None, request=Request(lse=True), scoring=scoring)
    lse = exact.lse.float()
    with_all, rows = received(query, key, lse, **options)
    weight = reference.tile(query, key, lse, rows=range(7, 8), cols=range(20), scoring=scoring)
    lse[..., 7] = -math.inf
    without, _ = received(query, key, lse, **options)
    torch.testing.assert_close((with_all - without).double() * rows[:, None], weight[:, :, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("tiles", "row"), [(SMALL, 3), (UNROLLED, 50), (POLYNOMIAL, 99), (POLYNOMIALS, 3), (POLYNOMIALS, 99)]
)
def test_a_row_that_is_not_a_number_poisons_the_keys_that_it_sees(sample, tiles, row):
    query, key, value = sample(kv_heads=1, group=2, queries=100, keys=100, width=16, dtype=torch.float16)
    query[:, 1, row] = math.nan
    (found, _), exact = both(query, key, value, band=Band(), tiles=tiles)
    assert exact.received[0, 1].isnan().tolist() == [key <= row for key in range(100)]
    assert found[0, 1, : row + 1].isnan().all()  # and some beyond, in the same tile
    torch.testing.assert_close(found[0, 0].double(), exact.received[0, 0], atol=1e-8, rtol=1e-5)


def test_rows_of_a_weight_of_nearly_1_and_columns_of_nearly_none(sample):
    """Both ends keep five digits, down to columns that receive 1e-8."""
    query, key, value = sample(kv_heads=1, queries=60, keys=60, width=16, sharp=1.0)
    query[..., 0], key[..., 0] = 20 / 0.35, 0.0
    key[:, :, 3, 0] = 1.0
    (found, _), exact = both(query, key, value, band=Band(start=4))
    assert exact.received[0, 0, 3] > 0.9999
    assert exact.received[0, 0, 4:].max() < 1e-6
    torch.testing.assert_close(found.double(), exact.received, atol=0, rtol=1e-5)


def test_inputs_laid_out_as_models_do(sample):
    """Heads side by side in memory, a cache with more room than keys, keys widened to 24: the numbers are the same."""
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=33, keys=40, width=24)
    room = torch.full((2, 2, 64, 32), math.nan)
    room[:, :, :40, :24] = key
    apart = query.transpose(1, 2).contiguous().transpose(1, 2)
    options = {"band": Band(), "mask": Mask(first_query=7)}
    (found, _), _ = both(apart, room[:, :, :40, :24], value, **options)
    (expected, _), _ = both(query, key, value, **options)
    assert torch.equal(found, expected)


def test_a_repeated_call_gives_the_same_numbers(sample):
    tensors = sample(kv_heads=2, group=2, queries=50, keys=50)
    one, other = (both(*tensors, band=Band())[0][0] for _ in range(2))
    assert torch.equal(one, other)


@triton.jit
def polynomial_kernel(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, exp2_polynomial(tl.load(x + at)))


def test_the_polynomial_is_exp2_to_1e_5_exactly_1_and_exactly_0():
    y = torch.cat([torch.linspace(0, 1, 8192 - 128), torch.arange(128) / 127])
    found = torch.empty_like(y)
    polynomial_kernel[(1,)](y, found, SIZE=8192)
    assert not found[y == 0].any() and (found[y == 1] == 1).all()
    normal = 127 * (y - 1) > -126
    torch.testing.assert_close(found[normal].double(), (127 * (y.double() - 1)).exp2()[normal], atol=0, rtol=1e-5)


def test_polynomials_stand_where_the_tiles_say(sample):
    """Of 4 tiles of 32 keys by 16 queries, 5 quarters: one in each of them, and one more in the first."""
    query, key, _ = sample(kv_heads=1, queries=64, keys=32, width=16, dtype=torch.float16)
    options = {"scoring": Scoring(Mask(causal=False), 0.35), "band": Band(lo=-32)}
    lse = torch.full((1, 1, 64), 5.0)

    def columns(quarters, queries):
        beyond = torch.full_like(lse, math.inf)  # a query of which no weight is left
        beyond[..., queries] = lse[..., queries]
        tiles = POLYNOMIAL._replace(unroll=4, quarters=quarters)
        return received(query, key, beyond, tiles=tiles, **options)[0][0, 0]

    for tile in range(4):
        queries = slice(16 * tile, 16 * tile + 16)
        changed = (columns(5, queries) != columns(0, queries)).view(4, 8).any(1)
        assert changed.tolist() == [False, False, tile == 0, True]


@triton.jit
def split_kernel(x, clear, set_, COLS: tl.constexpr, RUN: tl.constexpr):
    row = tl.arange(0, 16)[:, None]
    one, two = split_columns(tl.load(x + row * COLS + tl.arange(0, COLS)[None, :]), RUN)
    half = row * (COLS // 2) + tl.arange(0, COLS // 2)[None, :]
    tl.store(clear + half, one)
    tl.store(set_ + half, two)


@pytest.mark.parametrize("run", [8, 16])
def test_split_columns_goes_by_one_bit_of_the_index(run):
    x = torch.arange(16 * 64.0).view(16, 64)
    clear, set_ = torch.empty(16, 32), torch.empty(16, 32)
    split_kernel[(1,)](x, clear, set_, COLS=64, RUN=run)
    bit = (torch.arange(64) // run) % 2 == 1
    assert torch.equal(clear, x[:, ~bit]) and torch.equal(set_, x[:, bit])


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_tiles_hold_whole_runs_of_columns(width, dtype, capability):
    """A polynomial quarter needs 32 columns; products of half-precision tiles need 64 rows since 9.0."""
    tiles = column_tiles(width, dtype, capability)
    assert tiles.cols % 32 == 0 and tiles.cols % tiles.edge == 0 and not (tiles.quarters and dtype == torch.float32)
    assert tiles.quarters == 0 or tiles.unroll <= tiles.quarters <= 2 * tiles.unroll
    assert capability < (9, 0) or dtype == torch.float32 or tiles.rows % 64 == 0
