"""Sink statistics on tensors written by hand."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.sinks.statistics import later_per_head, row_counts, share_of_heads, sink_rate, value_norm_ratio


def test_sink_rate_counts_heads_above_epsilon():
    c = torch.tensor([[[0.5, 0.1], [0.31, 0.4]], [[0.3, 0.0], [0.2, 0.9]]])  # layers, heads, keys
    assert sink_rate(c).tolist() == [0.5, 0.5]  # 0.3 itself does not count
    assert sink_rate(c, epsilon=0.05).tolist() == [1.0, 0.75]
    with pytest.raises(ValueError, match="layers, heads, keys"):
        sink_rate(c[0])


def test_value_norm_ratio_leaves_the_first_out_of_the_median():
    values = torch.zeros(2, 4, 3)
    values[0, :, 0] = torch.tensor([1.0, 4.0, -5.0, 6.0])
    values[1, :, 1] = torch.tensor([9.0, 3.0, 3.0, 30.0])
    assert value_norm_ratio(values).tolist() == pytest.approx([0.2, 3.0])
    with pytest.raises(ValueError, match="keys >= 2"):
        value_norm_ratio(values[:, :1])


def test_share_of_heads_and_the_layers_where_it_is_most():
    found = torch.zeros(2, 3, 4, dtype=torch.bool)
    found[0, :2, 1] = True
    found[:, :, 0] = True
    found[1, 0, 1] = True
    share, layers = share_of_heads(found)
    assert share.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0]) and layers.tolist() == [2, 1, 0, 0]
    assert share_of_heads(found[:, :2, 1:2])[1].tolist() == [1]  # one head of two is not most of them
    assert later_per_head(found).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_row_counts():
    assert row_counts(4).tolist() == [4, 3, 2, 1]
