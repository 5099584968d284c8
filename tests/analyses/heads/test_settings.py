"""Settings of `probe heads`: what they refuse, and the names that they share with the analysis."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.heads.catalogue import SCORES
from probe.analyses.heads.needles import FAMILIES, Needle
from probe.analyses.heads.settings import KINDS, Settings
from probe.errors import UsageError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "--lengths"),
        ({"lengths": (300, 0)}, "--lengths"),
        ({"depths": ()}, "--depths"),
        ({"depths": (50, 101)}, "--depths"),
        ({"families": ("colors",)}, "--family: expected one of numbers, activities"),
        ({"samples": 0}, "--samples"),
        ({"prompt_style": "poem"}, "--prompt-style"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"kinds": ()}, "--kind"),
        ({"kinds": ("charm",)}, "--kind: expected one of retrieval, .*, sink, all, got 'charm'"),
        ({"score": "mean"}, "--score: expected one of set, per_step, got 'mean'"),
        ({"fills": ("mean",)}, "--fill"),
        ({"phase": "prefill"}, "--phase"),
        ({"max_tokens": 200}, "--max-tokens 200 leaves none of --lengths 300,600,1000,1500"),
        ({"kinds": ("sink",), "lengths": (400,)}, "--lengths needs --kind retrieval, got --kind sink"),
        ({"kinds": ("sink", "copying"), "until_stable": True}, "--until-stable needs .* --kind sink --kind copying"),
        ({"kinds": ("sink",), "validate": True}, "--validate prunes the retrieval heads and needs --kind retrieval"),
        ({"needles": "a.jsonl", "own_needles": (Needle("a b", "?", "b", "x"),)}, "--needles: .* got both"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        Settings(**changes)
    assert "\n" not in str(error.value)


def test_names_are_those_of_the_analysis():
    assert Settings().families == tuple(FAMILIES)
    assert tuple(SCORES) == ("retrieval", *Settings().other_kinds) == tuple(kind.replace("-", "_") for kind in KINDS)
    assert Settings(kinds=("sink", "previous-token")).other_kinds == ("previous_token", "sink")


def test_what_is_allowed_without_needles():
    assert not Settings(**Settings.presets["quick"], kinds=("sink",)).retrieves
    assert Settings(kinds=("sink",), validate=True, ranked=torch.rand(2, 2)).ranked is not None
    assert Settings(max_tokens=600).asked_lengths == (300, 600)
