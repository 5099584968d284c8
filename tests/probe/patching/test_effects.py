"""Means, errors and order of effects, by hand."""

import pytest
import torch

from probe.errors import UsageError
from probe.heads import Head
from probe.patching.effects import Effects, joined
from probe.patching.nodes import MLP

CLEAN, CORRUPTED = torch.tensor([2.0, 4.0]), torch.tensor([-2.0, -4.0])
PATCHED = torch.tensor([[1.0, 1.0], [2.0, 5.0], [2.0, 4.0]])
NODES = (Head(0, 1), MLP(2), Head(3, 0))


def test_effects_are_quotients_of_means():
    found = Effects(NODES, PATCHED, CLEAN, CORRUPTED)
    assert found.gap == -6 and found.raw.tolist() == [-2.0, 0.5, 0.0]
    assert found.normalised.tolist() == pytest.approx([100 / 3, -100 / 12, 0])
    assert found.standard_error.tolist() == pytest.approx([1.0, 0.5, 0.0])  # changes -1, -3 and 0, 1
    assert found.normalised_error.tolist() == pytest.approx([100 / 6, 100 / 12, 0.0])
    assert found.of(MLP(2)) == pytest.approx(-100 / 12) and found.top(2) == [Head(0, 1), MLP(2)]
    assert found.to_df()["node"].tolist() == ["L0H1", "MLP2", "L3H0"]


def test_batches_are_put_back_in_order():
    parts = [
        (torch.tensor([1]), Effects(NODES, PATCHED[:, 1:], CLEAN[1:], CORRUPTED[1:])),
        (torch.tensor([0]), Effects(NODES, PATCHED[:, :1], CLEAN[:1], CORRUPTED[:1])),
    ]
    found = joined(parts, prompts=2)
    assert torch.equal(found.patched, PATCHED) and torch.equal(found.clean, CLEAN)
    assert torch.equal(found.corrupted, CORRUPTED)


def test_shapes_must_fit():
    with pytest.raises(UsageError, match=r"patched must be \[3 nodes, 2 prompts\], got \[2, 2\]"):
        Effects(NODES, PATCHED[:2], CLEAN, CORRUPTED)
