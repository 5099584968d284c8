from __future__ import annotations

import math

import pytest
import torch

from probe.analyses.measures import intervals
from probe.analyses.measures.intervals import LEAST_SAMPLES, bootstrap_mean, mean_estimate, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    assert wilson(successes, trials) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match=r"0\.\.3 .* got 4"):
        wilson(4, 3)


def test_bootstrap_of_a_constant_is_that_constant():
    low, high = bootstrap_mean(torch.full((7, 2, 3), 0.25))
    assert low.tolist() == high.tolist() == [[0.25] * 3] * 2


def test_bootstrap_of_many_normal_numbers_is_the_normal_interval():
    values = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_mean(values)
    half = 1.96 * float(values.std()) / math.sqrt(4000)
    assert float(low) == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert float(high) == pytest.approx(float(values.mean()) + half, abs=0.1 * half)


def test_bootstrap_of_two_samples_resamples_both():
    low, high = bootstrap_mean(torch.tensor([0.0, 1.0]))
    assert (float(low), float(high)) == (0.0, 1.0)  # a quarter of the draws is twice the one, a quarter twice the other


def test_bootstrap_keeps_the_columns_apart(monkeypatch):
    values = torch.rand(12, 5, 3, generator=torch.Generator().manual_seed(1))
    whole = bootstrap_mean(values)
    monkeypatch.setattr(intervals, "CHUNK", 4 * 2000)  # four columns at a time, the last piece ragged
    for bound, pieces in zip(whole, bootstrap_mean(values), strict=True):
        torch.testing.assert_close(bound, pieces, rtol=0, atol=1e-12)
    for row, column in ((0, 0), (2, 1), (4, 0)):
        alone = bootstrap_mean(values[:, row, column])
        assert float(whole[0][row, column]) == pytest.approx(float(alone[0]), abs=1e-12)


def test_bootstrap_repeats_with_its_seed_and_moves_with_another():
    values = torch.rand(9, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(bootstrap_mean(values, seed=3)[0], bootstrap_mean(values, seed=3)[0])
    assert not torch.equal(bootstrap_mean(values, seed=3)[0], bootstrap_mean(values, seed=4)[0])


def test_one_sample_has_no_interval():
    low, high = bootstrap_mean(torch.ones(1, 2))
    assert low.isnan().all()
    assert high.isnan().all()


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples >= 1"):
        bootstrap_mean(torch.ones(0, 2))


def test_an_estimate_is_the_mean_with_its_bootstrap_interval():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    found = mean_estimate(values, seed=3)
    low, high = bootstrap_mean(values, seed=3)
    assert (found.value, found.low, found.high, found.n) == (4.0, float(low), float(high), 4) and found.known


def test_an_estimate_of_a_few_samples_has_no_interval():
    assert LEAST_SAMPLES == 3 and mean_estimate(torch.tensor([1.0, 2.0, 4.0])).known
    found = mean_estimate(torch.tensor([1.0, 2.0]))
    assert found.value == 1.5 and found.n == 2 and not found.known
    assert math.isnan(mean_estimate(torch.tensor([1.0, math.nan, 2.0, 3.0])).value)
