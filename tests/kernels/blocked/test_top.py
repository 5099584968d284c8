"""The largest scores against Python's own sort."""

from __future__ import annotations

import pytest
import torch

from probe.kernels.blocked.top import CHUNK, first_largest, top_columns
from probe.kernels.pooled import tile_maxima


def by_sorting(row: list[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]


@pytest.mark.parametrize("share", [1.0, 0.02])
@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("cols", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7, 5 * CHUNK - 1])
def test_best_first_ties_to_the_lower_column(cols, levels, share):
    """From rows all alike to rows all different, with ties everywhere or between a few; the last chunk ends s."""
    generator = torch.Generator().manual_seed(cols)
    s = torch.randint(0, levels, (4, 10, cols), generator=generator).float()
    s *= torch.rand(s.shape, generator=generator) < share
    for k in {1, min(2, cols), min(CHUNK + 3, cols), cols}:
        score, column = top_columns(s, tile_maxima(s, 0, CHUNK), k)
        for row, found in zip(s.flatten(0, 1).tolist(), column.flatten(0, 1).tolist(), strict=True):
            assert found == by_sorting(row, k)
        assert torch.equal(score, s.gather(-1, column))


def test_scores_inside_a_larger_buffer():
    """Neighbours in memory, larger than any score of the row, must not be seen."""
    buffer = torch.full((1000,), 9e9)
    s = buffer[77 : 77 + 3 * 130].view(3, 130)
    s.copy_(torch.randn(3, 130, generator=torch.Generator().manual_seed(0)))
    for k in (1, 5, 130):
        _, column = top_columns(s, tile_maxima(s, 0, CHUNK), k)
        assert column.tolist() == [by_sorting(row, k) for row in s.tolist()]


def test_first_largest_of_equals():
    x = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert first_largest(x, 1).tolist() == [[1]]
    assert first_largest(x, 4).tolist() == [[1, 2, 4, 3]]
