"""Rules for sinks: column means written by hand, uniform attention, windows and padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from probe import UsageError
from probe.interventions.sink_rules import RULES, THRESHOLDS, initial, sinks, uniform_column_means


def maps(length: int, *, window: int | None = None, start: int = 0, stop: int | None = None) -> Tensor:
    """Uniform attention over the visible keys [length, length]; tokens outside [start, stop) are padding."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    stop = length if stop is None else stop
    visible = (j <= i) & (j >= start) & (i < stop) & (i - j < (window or length))
    return (visible / visible.sum(-1, keepdim=True).clamp(min=1)).double()


def column_means(weights: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """(c, rows) of a map [queries, keys] over the counted queries."""
    i, j = torch.arange(len(weights))[:, None], torch.arange(len(weights))[None]
    pairs = (i >= j) & counted[:, None]
    return (weights * pairs).sum(0) / pairs.sum(0), pairs.sum(0)


def test_absolute_and_alpha_over_n_are_strict():
    c = torch.tensor([0.9, 0.5, 0.5, 1.0])
    rows = torch.tensor([4, 3, 2, 1])
    assert sinks(c, rows, rule="absolute", threshold=0.5).tolist() == [True, False, False, True]
    assert sinks(c, rows, rule="alpha_over_n", threshold=2).tolist() == [True, False, False, True]  # 2 / 4
    assert sinks(c, rows, rule="alpha_over_n", threshold=1.9).tolist() == [True, True, True, True]
    assert sinks(c, rows, rule="absolute", threshold=0.5, min_rows=2).tolist() == [True, False, False, False]


def test_defaults_are_the_papers():
    assert THRESHOLDS == {"absolute": 0.1, "alpha_over_n": 5.0, "alpha_times_uniform": 5.0}
    c = torch.tensor([0.04, 0.06, 0.11])
    rows = torch.tensor([100, 99, 98])
    assert sinks(c, rows).tolist() == [False, True, True]  # 5 / 100
    assert sinks(c, rows, rule="absolute").tolist() == [False, False, True]


def test_uniform_column_means_by_hand():
    found = uniform_column_means(torch.tensor([3, 2, 1]))
    expected = [(1 + 1 / 2 + 1 / 3) / 3, (1 / 2 + 1 / 3) / 2, 1 / 3]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "window, start, stop", [(None, 0, None), (4, 0, None), (None, 5, None), (3, 5, None), (4, 0, 9)]
)
def test_uniform_column_means_equal_those_of_the_map(window, start, stop):
    length = 13
    real = torch.zeros(length, dtype=torch.bool)
    real[start:stop] = True
    c, rows = column_means(maps(length, window=window, start=start, stop=stop), real)
    found = uniform_column_means(rows, real=real, window=window)
    torch.testing.assert_close(found[real], c[real])


@pytest.mark.parametrize("first, last", [(0, 7), (4, 13), (3, 8)])
def test_uniform_column_means_over_some_queries(first, last):
    counted = torch.zeros(13, dtype=torch.bool)
    counted[first:last] = True
    c, rows = column_means(maps(13), counted)
    found = uniform_column_means(rows)
    torch.testing.assert_close(found[:last], c[:last])
    assert found[last:].isnan().all()


def test_uniform_attention_has_sinks_only_by_alpha_over_n():
    """The pitfall that the third rule is for: 5 / N flags the first columns of noise."""
    c, rows = column_means(maps(512), torch.ones(512, dtype=torch.bool))
    flagged = sinks(c, rows, rule="alpha_over_n", min_rows=16)
    assert flagged.nonzero().flatten().tolist() == [0, 1, 2, 3]  # j < 512 / 148
    assert not sinks(c, rows, rule="alpha_times_uniform", min_rows=16).any()
    assert c[8].item() == pytest.approx(math.log(512 / 8) / 504, rel=0.05)


def test_noise_is_not_called_a_sink_once_columns_need_rows():
    """Nothing planted, nothing found; with columns of one row allowed, noise is."""
    scores = torch.randn(6, 256, 256, generator=torch.Generator().manual_seed(0)).double()
    weights = scores.masked_fill(torch.ones(256, 256).triu(1).bool(), -torch.inf).softmax(-1)
    counted = torch.ones(256, dtype=torch.bool)
    pairs = [column_means(each, counted) for each in weights]
    c, rows = torch.stack([pair[0] for pair in pairs]), pairs[0][1]
    assert not sinks(c, rows, rule="alpha_times_uniform", threshold=3, min_rows=32).any()
    assert sinks(c, rows, rule="alpha_times_uniform", threshold=3).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_sink_is_found_by_every_rule(rule):
    weights = maps(200)
    weights[60:] *= 0.6
    weights[60:, 60] += 0.4
    c, rows = column_means(weights, torch.ones(200, dtype=torch.bool))
    found = sinks(c, rows, rule=rule, min_rows=16)
    assert found[60] and found[1:].nonzero().flatten().tolist() in ([59], [0, 59])  # 5 / N: columns 0 and 1 too


@pytest.mark.parametrize("rule", RULES)
def test_left_padding_changes_nothing(rule):
    weights = maps(40)
    weights[10:] *= 0.5
    weights[10:, 10] += 0.5
    padded = torch.zeros(47, 47, dtype=torch.float64)
    padded[7:, 7:] = weights
    real = torch.arange(47) >= 7
    alone = column_means(weights, torch.ones(40, dtype=torch.bool))
    beside = column_means(padded, real)
    expected = sinks(*alone, rule=rule, min_rows=4)
    assert expected[10]
    found = sinks(*beside, rule=rule, min_rows=4, real=real)
    assert found.tolist() == [False] * 7 + expected.tolist()


def test_even_attention_behind_padding_has_no_sinks():
    real = torch.arange(60) >= 40
    c, rows = column_means(maps(60, start=40), real)
    assert not sinks(c, rows, rule="alpha_times_uniform", threshold=1.01, real=real).any()
    assert sinks(c, rows, rule="alpha_times_uniform", threshold=0.99, real=real).tolist() == real.tolist()


def test_padding_and_empty_columns_are_no_sinks():
    c = torch.tensor([[0.9, 0.9, torch.nan]])
    found = sinks(c, torch.tensor([2, 2, 0]), rule="absolute", real=torch.tensor([False, True, True]))
    assert found.tolist() == [[False, True, False]]


def test_the_initial_token_is_the_first_that_is_not_padding():
    real = torch.tensor([[False, False, True, True], [True, True, True, False]])
    c = torch.zeros(3, 2, 4)  # heads, batch, keys
    assert initial(c, real=real)[2].int().tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert initial(c)[0].int().tolist() == [[1, 0, 0, 0]] * 2


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"rule": "relative"},
            "the sink rule must be one of absolute, alpha_over_n, alpha_times_uniform, got 'relative'",
        ),
        ({"threshold": 0.0}, "the sink threshold must be above 0, got 0.0"),
        ({"threshold": math.nan}, "the sink threshold must be above 0, got nan"),
        ({"min_rows": 0}, "min_rows must be at least 1, got 0"),
        ({"rule": "alpha_times_uniform", "window": 0}, "window must be at least 1 key, got 0"),
    ],
)
def test_mistakes_are_one_line(options, words):
    with pytest.raises(UsageError, match=words):
        sinks(torch.ones(3), torch.tensor([3, 2, 1]), **options)
