"""Correlations and shared top heads: known answers, then scipy's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from probe import Head, UsageError
from probe.analyses.measures.agreement import correlate, ranks, shared_top, spearman, top_heads


def test_a_map_agrees_with_itself_and_with_its_opposite():
    a = torch.arange(12.0).view(3, 4)
    same, opposite = correlate(a, 2 * a + 5), correlate(a, -a)
    assert (same.pearson, same.spearman, same.heads) == pytest.approx((1, 1, 12))
    assert (same.low, same.high) == pytest.approx((1, 1))
    assert (opposite.pearson, opposite.spearman) == pytest.approx((-1, -1))


def test_a_monotone_curve_is_perfect_by_rank_only():
    a = torch.arange(12.0).view(3, 4)
    found = correlate(a, a.exp())
    assert found.spearman == pytest.approx(1) and found.pearson < 0.7


def test_correlations_equal_scipys_with_ties_and_missing_heads():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 5, (6, 9), generator=generator).double()
    b = a + torch.randint(0, 8, (6, 9), generator=generator)
    b[2, 3] = a[4, 4] = torch.nan
    kept = ~(a.isnan() | b.isnan())
    x, y = a[kept].numpy(), b[kept].numpy()
    found = correlate(a, b)
    assert found.heads == 52
    assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.low < found.pearson < found.high
    fisher = stats.pearsonr(x, y).confidence_interval()
    assert (found.low, found.high) == pytest.approx((fisher.low, fisher.high), abs=0.08)
    assert correlate(a, b) == found and correlate(a, b, seed=1).low != found.low


def test_no_correlation_where_nothing_varies_or_too_few_heads():
    a = torch.arange(6.0).view(2, 3)
    flat = correlate(a, torch.ones(2, 3))
    assert math.isnan(flat.pearson) and math.isnan(flat.spearman) and math.isnan(flat.low)
    few = correlate(a, torch.tensor([[1.0, 2, torch.nan], [torch.nan, torch.nan, torch.nan]]))
    assert math.isnan(few.pearson) and few.heads == 2


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(torch.tensor([3.0, 1, 3, 7])).tolist() == [2.5, 1, 2.5, 4]


def test_spearman_is_scipy_s_with_an_interval_around_it():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=draw, dtype=torch.float64)
    x[10:14] = x[9]  # ties
    y = x.exp() + 0.3 * torch.randn(60, generator=draw, dtype=torch.float64)
    found = spearman(x, y, seed=1)
    assert found.value == pytest.approx(stats.spearmanr(x, y)[0]) and found.n == 60
    assert 0.6 < found.low < found.value < found.high < 1 and found == spearman(x, y, seed=1)
    assert found != spearman(x, y, seed=2)
    resampled = torch.stack([x, x[torch.randint(60, (60,), generator=draw)]])
    for row, expected in zip(ranks(resampled), resampled, strict=True):
        assert row.tolist() == stats.rankdata(expected).tolist()


def test_spearman_of_two_heads_or_of_a_constant_is_not_known():
    for x, y in ((torch.rand(2), torch.rand(2)), (torch.ones(5), torch.rand(5))):
        assert math.isnan(spearman(x, y).value) and not spearman(x, y).known


def test_top_heads_break_ties_by_layer_and_head_and_skip_missing_scores():
    score = torch.tensor([[0.5, torch.nan, 0.9], [0.5, 0.9, -1.0]])
    assert top_heads(score, 9) == [Head(0, 2), Head(1, 1), Head(0, 0), Head(1, 0), Head(1, 2)]
    assert top_heads(score, 1) == [Head(0, 2)]


def test_shared_top_heads_against_the_hypergeometric_distribution():
    a = torch.arange(30.0).view(5, 6)
    b = a.clone()
    b[4] = torch.tensor([0.0, 0, 0, 27, 28, 29])  # three of a's best six stay best
    b[3] += 100
    found = shared_top(a, b, 8)
    assert found.heads == (Head(4, 5), Head(4, 4), Head(3, 5), Head(3, 4))
    assert found.expected == pytest.approx(64 / 30)
    assert found.chance == pytest.approx(stats.hypergeom.sf(len(found.heads) - 1, 30, 8, 8))


def test_all_heads_are_shared_by_chance():
    a = torch.arange(6.0).view(2, 3)
    found = shared_top(a, -a, 6)
    assert len(found.heads) == 6 and found.expected == 6 and found.chance == 1


def test_mistakes_are_one_line():
    a = torch.arange(6.0).view(2, 3)
    with pytest.raises(UsageError, match="same layers x heads, got 2 x 3 and 3 x 2: heads are compared one to one"):
        correlate(a, a.T)
    for k in (0, 7):
        with pytest.raises(UsageError, match=f"k must be 1..6, the heads that have both scores, got {k}"):
            shared_top(a, a, k)
