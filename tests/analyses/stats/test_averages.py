"""The three means by hand."""

import math

import numpy as np
import pytest
import torch

from probe.analyses.measures.intervals import bootstrap_mean
from probe.analyses.stats.averages import over_queries, over_texts, over_units, student


def test_the_mean_of_a_unit_is_over_its_queries():
    values = torch.tensor([[9.0, 1.0, 3.0, 5.0, 100.0], [9.0, 2.0, 2.0, 8.0, 100.0]])  # heads, queries
    mean, deviation = over_queries(values, torch.tensor([-1, 0, 0, 1, -1]), 2)
    assert mean.tolist() == [[2.0, 2.0], [5.0, 8.0]]  # units, heads
    assert deviation[0].tolist() == pytest.approx([math.sqrt(2), 0.0]) and deviation[1].isnan().all()


def test_queries_of_a_unit_need_not_stand_together():
    mean, _ = over_queries(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([0, 1, 0, 1]), 2)
    assert mean.tolist() == [2.0, 6.0]


def test_the_interval_of_a_unit_is_students():
    # t of 4 degrees of freedom at 97.5 % is 2.776 (any table)
    half = student(np.array([1.0, 3.0, np.nan]), np.array([5, 5, 1]))
    assert half[:2] == pytest.approx([2.776 / math.sqrt(5), 3 * 2.776 / math.sqrt(5)], abs=1e-3) and np.isnan(half[2])


def test_each_unit_counts_once_in_the_mean_of_its_text():
    means = torch.tensor([[1.0], [3.0], [10.0]])
    found = over_units(means, torch.tensor([0, 0, 2]), 3)
    assert found[0].item() == 2.0 and found[1].isnan().all() and found[2].item() == 10.0


def test_texts_without_such_a_unit_are_left_out():
    means = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [3.0, 6.0]], dtype=torch.float64)
    mean, low, high, texts = over_texts(means, seed=4)
    assert mean.tolist() == [2.0, 4.0] and texts == 2
    expected = bootstrap_mean(means[[0, 2]], seed=4)
    assert torch.equal(low, expected[0]) and torch.equal(high, expected[1])
