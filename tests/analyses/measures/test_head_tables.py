"""The order and the columns of tables of heads."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.measures.head_tables import head_table


def test_the_first_column_orders_the_heads_and_missing_scores_come_last():
    first = torch.tensor([[0.1, 0.9, 0.5, torch.nan], [0.5, 0.2, 0.9, 0.0]])
    second = torch.arange(8.0).view(2, 4)
    table = head_table({"first": first, "second": second}, n_kv_heads=4)
    heads = list(zip(table["layer"], table["head"], strict=True))
    assert heads == [(0, 1), (1, 2), (0, 2), (1, 0), (1, 1), (0, 0), (1, 3), (0, 3)]
    assert table["kv_group"].tolist() == [1, 2, 2, 0, 1, 0, 3, 3]
    assert table["second"].tolist() == [1, 6, 2, 4, 5, 0, 7, 3]


def test_columns_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"column b must be \[2, 4\] like the first, got \[4, 2\]"):
        head_table({"a": torch.zeros(2, 4), "b": torch.zeros(4, 2)}, n_kv_heads=2)
