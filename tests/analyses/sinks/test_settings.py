"""What `Settings` refuses, before a model is loaded and once its texts are tokens."""

from __future__ import annotations

import pytest

from probe import UsageError
from probe.analyses.sinks.analysis import SinkAnalysis
from probe.analyses.sinks.settings import Settings
from probe.analyses.sinks.texts import TEXTS, Prose
from probe.frame.run import identity
from probe.interventions.sink_rules import RULES
from probe.models import Model


@pytest.mark.parametrize(
    "options, words",
    [
        ({"prose": ()}, "at least one text"),
        ({"prose": TEXTS, "prompt_file": ("one.txt",)}, "neither --prompt nor --prompt-file"),
        ({"prose": TEXTS, "prompt": ("A text.",)}, "neither --prompt nor --prompt-file"),
        ({"max_tokens": 1}, "--max-tokens: expected at least 2, got 1"),
        ({"rule": "most"}, "--rule: expected one of absolute, alpha-over-n, alpha-times-uniform, got 'most'"),
        ({"min_rows": 0}, "--min-rows: expected at least 1, got 0"),
        ({"randoms": 0}, "--randoms: expected at least 1, got 0"),
        ({"min_magnitude": 0.0}, "--min-magnitude: expected a number above 0, got 0"),
        ({"epsilon": 0.0}, "--epsilon"),
        ({"min_ratio": -1.0}, "--min-ratio"),
        ({"threshold": 0.0}, "--threshold"),
    ],
)
def test_mistakes_are_one_line(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def prepared(model: Model, **options: object) -> SinkAnalysis:
    analysis = SinkAnalysis(Settings(**options))
    analysis.ready(model)
    return analysis


def test_texts_that_do_not_fit(llama: Model, tmp_path):
    with pytest.raises(UsageError, match="word: expected a text of at least 2 tokens, got 1"):
        prepared(llama, prose=(Prose("word", "Word"),))
    with pytest.raises(UsageError, match="prompt 2: expected a text of at least 2 tokens, got 0"):
        prepared(llama, prompt=("A cat sat.", " "))
    (tmp_path / "long.txt").write_text("word " * 9000)
    with pytest.raises(UsageError, match=r"long.txt has \d+ tokens and llama 8192 positions: give --max-tokens"):
        prepared(llama, prompt_file=(tmp_path / "long.txt",))


def test_a_text_is_cut_at_so_many_tokens(llama: Model):
    (whole,), (cut,) = (prepared(llama, prose=TEXTS[:1], max_tokens=limit)._prompts for limit in (None, 40))
    assert len(cut) == 40 and cut.ids.tolist() == whole.ids[:40].tolist()


def test_every_setting_names_another_run_folder(llama: Model, tmp_path):
    (tmp_path / "memo").write_text(TEXTS[0].text)
    changed = [
        {"prose": TEXTS[:1]}, {"prose": TEXTS[1:2]}, {"prose": (Prose("other name", TEXTS[0].text),)},
        {"rule": "alpha-over-n"}, {"threshold": 0.2}, {"min_rows": 8}, {"epsilon": 0.2}, {"min_magnitude": 50.0},
        {"min_ratio": 500.0}, {"randoms": 2}, {"seed": 1}, {"max_tokens": 50},
    ]  # fmt: skip
    made = [str(identity(prepared(llama, **options), llama)) for options in ({}, *changed)]
    assert len(set(made)) == len(made)
    file = identity(prepared(llama, prompt_file=(tmp_path / "memo",)), llama)
    assert file == identity(prepared(llama, prose=TEXTS[:1]), llama)  # the same text, wherever it comes from
    here = prepared(llama, prompt=(TEXTS[0].text,))
    assert [prose.text for prose in here._texts] == [TEXTS[0].text]
    typed, own = (identity(prepared(llama, threshold=value), llama) for value in (0.1, None))
    assert typed == own  # the rule's own, given by hand


def test_the_rules_are_those_of_the_interventions():
    assert tuple(rule.replace("-", "_") for rule in Settings.options()["rule"].choices) == RULES
