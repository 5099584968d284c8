"""Heads are called by what their END row reads and by the sign of their effect."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.circuits.end_attention import FIRST, OTHER, EndAttention
from probe.analyses.circuits.roles import called
from probe.heads import Head

ROLES = ("IO", "S1", "S2", FIRST, OTHER)


def looking(**weights: float) -> EndAttention:
    """One head whose END row has these weights."""
    return EndAttention(torch.tensor([[[weights.get(role.replace(" ", "_"), 0.0) for role in ROLES]]]), ROLES)


@pytest.mark.parametrize(
    ("weights", "effect", "name"),
    [
        ({"IO": 0.6}, 1.0, "mover"),
        ({"IO": 0.6}, -1.0, "copy suppression"),
        ({"S1": 0.1, "S2": 0.3, "IO": 0.3}, 1.0, "negative mover"),
        ({"S2": 0.6}, -1.0, "wrong mover"),
        ({"IO": 0.1, "first_token": 0.8}, 1.0, "parked"),
        ({"IO": 0.1, "elsewhere": 0.8}, 1.0, "other"),
    ],
)
def test_heads_are_called_by_what_they_read_and_do(weights, effect, name):
    assert called(looking(**weights), Head(0, 0), effect) == name


def test_a_head_that_reads_every_answer_is_a_mover():
    """Two wrong answers together get more than the right one, and neither does alone."""
    roles = ("right", "wrong 1", "wrong 2", FIRST, OTHER)
    attention = EndAttention(torch.tensor([[[0.25, 0.19, 0.18, 0.1, 0.28], [0.1, 0.2, 0.05, 0.1, 0.55]]]), roles)
    assert called(attention, Head(0, 0), 1.0) == "mover" and called(attention, Head(0, 1), 1.0) == "negative mover"
