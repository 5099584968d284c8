"""Settings: what is refused, presets, what JSON and the identity of a run hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from probe.errors import UsageError
from probe.frame.settings import spelled
from tests.probe.frame.tiny import TinySettings


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"prompts": 0}, "--prompts: expected 1 to 9, got 0"),
        ({"prompts": 10}, "--prompts: expected 1 to 9, got 10"),
        ({"prompts": 2.0}, "--prompts: expected a whole number, got 2.0"),
        ({"prompts": True}, "--prompts: expected a whole number, got True"),
        ({"prompts": "3"}, "--prompts: expected a whole number, got '3'"),
        ({"prompts": (3, 4)}, r"--prompts: expected one value, got \(3, 4\)"),
        ({"again": -1}, "--again: expected at least 0, got -1"),
        ({"lengths": (8, 1)}, "--lengths: expected at least 2, got 1"),
        ({"lengths": 8}, "--lengths: expected a list of values, got 8"),
        ({"lengths": ("8",)}, "--lengths: expected a whole number, got '8'"),
        ({"scale": 0}, "--scale: expected a number above 0 and at most 4, got 0"),
        ({"scale": 4.5}, "--scale: expected a number above 0 and at most 4, got 4.5"),
        ({"scale": math.nan}, "--scale: expected a number above 0 and at most 4, got nan"),
        ({"scale": "1"}, "--scale: expected a number, got '1'"),
        ({"kind": "median"}, "--kind: expected one of mean, max, got 'median'"),
        ({"words": "one"}, "--word: expected a list of values, got 'one'"),
        ({"kind": "max", "scale": 2.0}, "--scale: expected 1 with --kind max"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_names_the_option(changes, said):
    for make in (TinySettings, TinySettings.of, TinySettings().changed, lambda **each: replace(TinySettings(), **each)):
        with pytest.raises(UsageError, match=f"^{said}$"):
            make(**changes)


def test_bounds_themselves_are_allowed_and_lists_are_tuples():
    made = TinySettings(prompts=9, lengths=[2, 3], scale=4, again=0)
    assert made.lengths == (2, 3) and made == TinySettings(prompts=9, lengths=(2, 3), scale=4)
    assert TinySettings(lengths=range(2, 5)).lengths == (2, 3, 4)
    assert TinySettings(file=None).file is None


def test_presets_are_defaults_that_changes_come_on_top_of():
    assert TinySettings.of() == TinySettings.of("default") == TinySettings()
    assert TinySettings.of("quick").prompts == 1 and TinySettings.of("report").prompts == 5
    assert TinySettings.of("quick", prompts=2, seed=4) == TinySettings(prompts=2, seed=4)
    with pytest.raises(UsageError, match="--preset: expected one of default, quick, report, got 'slow'"):
        TinySettings.of("slow")


def test_an_unknown_name_is_refused_with_those_that_there_are():
    for make in (TinySettings.of, TinySettings().changed):
        with pytest.raises(UsageError, match="unknown setting 'prompt': expected one of again, file, kind, lengths"):
            make(prompt=2)
    assert TinySettings(seed=1).changed(prompts=2) == TinySettings(seed=1, prompts=2)


def test_json_holds_every_option_and_nothing_that_only_python_gives():
    made = TinySettings(file=Path("a/b.txt"), words=["x"], more={"deep": 2}, task="one")
    assert made.to_dict() == {
        "seed": 0, "prompts": 3, "again": 0, "lengths": [8, 12], "scale": 1.0, "kind": "mean", "words": ["x"],
        "file": str(Path("a/b.txt")), "more": {"deep": 2},
    }  # fmt: skip
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()


def test_the_identity_leaves_out_what_adds_units_and_where_files_lie():
    plain = TinySettings().identity()
    assert plain.keys() == TinySettings().to_dict().keys() - {"again", "file"}
    assert TinySettings(again=2, file=Path("x")).identity() == plain
    changed = [
        {"seed": 1}, {"prompts": 2}, {"lengths": (8,)}, {"scale": 2.0}, {"kind": "max"}, {"words": ("x",)},
        {"more": {"a": 1}},
    ]  # fmt: skip
    for change in changed:
        assert TinySettings(**change).identity() != plain, change


def test_a_default_of_a_dictionary_is_not_shared():
    first, second = TinySettings(), TinySettings()
    assert first.more == {} and first.more is not second.more


def test_options_are_spelled_by_their_field_unless_they_say_otherwise():
    options = TinySettings.options()
    assert spelled("words", options["words"]) == "--word" and spelled("max_tokens", options["again"]) == "--max-tokens"
    assert "task" not in options


def test_importing_settings_imports_nothing_heavy():
    code = "import sys, probe.frame.settings; sys.exit(bool({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
