"""Massive activations, phi and writers on streams written by hand."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.sinks.massive_activations import massive, phi, steps, writer


def test_both_thresholds_must_be_passed():
    stream = torch.full((4, 5), 0.2)
    stream[1, 3], stream[2, 0], stream[3, 4] = -250.0, 150.0, 99.0
    mask, median = massive(stream)
    assert median == pytest.approx(0.2)
    assert mask.nonzero().tolist() == [[1, 3]]  # 150 is 750 times the median, 99 too small
    assert massive(stream, min_ratio=700)[0].nonzero().tolist() == [[1, 3], [2, 0]]
    assert massive(stream, min_magnitude=90, min_ratio=400)[0].sum() == 3


def test_phi_is_the_share_of_the_norm_in_the_chosen_dimensions():
    stream = torch.tensor([[0.0, 6.0, 0.0, 8.0], [0.0, -3.0, 0.0, 0.0]])
    assert phi(stream, [1, 2]).tolist() == pytest.approx([6 / 5, 2.0])  # RMS 5; sqrt(hidden) where all is in one
    assert phi(stream, [0]).tolist() == [0.0, 0.0] and phi(stream, [3, 1])[0] == pytest.approx(8 / 5)
    with pytest.raises(ValueError, match="at least one dimension"):
        phi(stream, [])


def test_steps_and_writer():
    values = torch.tensor([1.0, 5.0, -20.0, -21.0, 0.5])
    assert steps(values[:, None]).flatten().tolist() == [1.0, 4.0, -25.0, -1.0, 21.5]
    assert writer(values) == 2  # |x| grows by 15; erasing does not count
    assert writer(torch.tensor([9.0, 10.0])) == 0


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"stream must be \[tokens, hidden\]"):
        massive(torch.zeros(1, 2, 3))
