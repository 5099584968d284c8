"""Scores of heads: layers, bounds, what does not fit, and the JSON form."""

from __future__ import annotations

import pytest
import torch

from probe.frame.scores import HeadScore

VALUES = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.125, 2.0]])


def test_layers_count_from_zero_unless_they_are_named():
    made = HeadScore(values=VALUES, unit="share", sign="higher: more")
    assert made.layers == (0, 1, 2) and made.per == "head"
    assert HeadScore(values=VALUES, unit="share", sign="higher: more", layers=(3, 7, 11)).layers == (3, 7, 11)


def test_json_has_the_map_and_the_bounds_that_there_are():
    made = HeadScore(values=VALUES, unit="nats", sign="lower: better", layers=(1, 2, 4), low=VALUES - 1, per="kv head")
    assert made.to_dict() == {
        "unit": "nats", "sign": "lower: better", "per": "kv head", "layers": [1, 2, 4], "values": VALUES.tolist(),
        "low": (VALUES - 1).tolist(),
    }  # fmt: skip


@pytest.mark.parametrize(
    "options, said",
    [
        ({"values": VALUES[0]}, r"expected values \[layers, heads\], got \[2\]"),
        ({"values": VALUES, "layers": (0, 1)}, "expected 3 layer numbers, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HeadScore(**({"unit": "share", "sign": "higher: more"} | options))
