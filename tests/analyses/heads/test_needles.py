from __future__ import annotations

import json
import random
import re

import pytest

from probe.analyses.heads.needles import FAMILIES, HELD_OUT, MAIN, Needle, read_needles
from probe.errors import ProbeError

FRAME = ("The", "the", "best", "thing", "to", "do", "in", "is")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_needle_repeats_with_its_seed(family):
    draw = FAMILIES[family]
    assert draw(random.Random("a"), MAIN) == draw(random.Random("a"), MAIN)
    assert len({draw(random.Random(seed), MAIN) for seed in range(50)}) > 20


def test_a_number_has_five_different_digits():
    for seed in range(200):
        needle = FAMILIES["numbers"](random.Random(seed), MAIN)
        assert re.fullmatch(r"[1-9]\d{4}", needle.answer)
        assert len(set(needle.answer)) == 5
        city = needle.question.removeprefix("What is the special magic number for ").removesuffix("?")
        assert needle.text == f"The special magic number for {city} is {needle.answer}."


def test_held_out_needles_share_nothing_with_the_main_ones():
    assert not set(MAIN.cities) & set(HELD_OUT.cities)
    assert not set(MAIN.activities) & set(HELD_OUT.activities)
    for pool in (MAIN, HELD_OUT):
        assert all(len(set(activity.split())) == len(activity.split()) for activity in pool.activities)
        assert not {word for activity in pool.activities for word in activity.split()} & set(FRAME)
        assert len(set(pool.cities)) == len(pool.cities)
        assert len(set(pool.activities)) == len(pool.activities)


def test_an_answer_outside_its_needle_is_refused():
    with pytest.raises(ProbeError, match="a part of its needle"):
        Needle("The key is under the mat.", "Where is the key?", "under the rug", "custom")


def test_needles_come_from_a_file(tmp_path):
    path = tmp_path / "needles.jsonl"
    lines = [
        {"needle": "Ada keeps bees.", "question": "What does Ada keep?", "answer": "bees", "family": "pets"},
        {"needle": "Bo plays go.", "question": "What does Bo play?", "answer": "go"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert read_needles(path) == (
        Needle("Ada keeps bees.", "What does Ada keep?", "bees", "pets"),
        Needle("Bo plays go.", "What does Bo play?", "go", "custom"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json}", "line 1: not valid JSON"),
        ('{"needle": "a b", "question": "c?"}', 'line 1: expected strings "needle"'),
        ('\n{"needle": "a b", "question": "c?", "answer": "x"}', "line 2: .*a part of its needle"),
        ('["a"]', "line 1: expected a JSON object, got"),
        ("\n", "the file is empty"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path, content, message):
    path = tmp_path / "needles.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ProbeError, match=message) as error:
        read_needles(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ProbeError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_needles(tmp_path / "none.jsonl")
