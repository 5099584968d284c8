"""What `Settings` refuses, before a model is loaded and once its texts are tokens."""

from __future__ import annotations

import pytest

from probe import UsageError
from probe.analyses.sinks.settings import Settings
from probe.analyses.sinks.texts import TEXTS, Prose, from_files
from probe.models import Model


@pytest.mark.parametrize(
    "options, words",
    [
        ({"texts": ()}, "at least one text"),
        ({"max_tokens": 1}, "--max-tokens: expected at least 2, got 1"),
        ({"rule": "most"}, "the sink rule must be one of"),
        ({"min_rows": 0}, "min_rows"),
        ({"randoms": 0}, "randoms"),
    ],
)
def test_mistakes_are_one_line(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def test_texts_that_do_not_fit(llama: Model, tmp_path):
    with pytest.raises(UsageError, match="at least 2 tokens, got word with 1"):
        Settings(texts=(Prose("word", "Word"),)).prompts(llama)
    (tmp_path / "long.txt").write_text("word " * 9000)
    with pytest.raises(UsageError, match=r"long.txt has \d+ tokens and llama 8192 positions: give --max-tokens"):
        Settings(texts=from_files([tmp_path / "long.txt"])).prompts(llama)


def test_a_text_is_cut_at_so_many_tokens(llama: Model):
    (whole,), (cut,) = (Settings(texts=TEXTS[:1], max_tokens=limit).prompts(llama) for limit in (None, 40))
    assert len(cut) == 40 and cut.ids.tolist() == whole.ids[:40].tolist()


def test_every_setting_names_another_run_folder():
    changed = [
        {"texts": TEXTS[:1]}, {"rule": "alpha_over_n"}, {"threshold": 0.2}, {"min_rows": 8}, {"epsilon": 0.2},
        {"least": 50.0}, {"ratio": 500.0}, {"randoms": 2}, {"seed": 1}, {"max_tokens": 50},
    ]  # fmt: skip
    configs = [str(Settings(**options).config()) for options in ({}, *changed)]
    assert len(set(configs)) == len(configs)
    assert Settings(threshold=0.1).config() == Settings().config()  # the rule's own, given by hand
