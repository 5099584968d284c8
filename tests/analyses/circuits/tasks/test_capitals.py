"""Capitals: prompts for many seeds with the packaged tokenizer, and how the model does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.analyses.circuits.tasks.capitals import CAPITALS, TEMPLATES, capitals


def country_in(text: str, group: str) -> str:
    front, end = TEMPLATES[int(group.split()[1]) - 1].split("{country}")
    assert text.startswith(front) and text.endswith(end)
    return text.removeprefix(front).removesuffix(end)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_each_prompt_asks_for_its_answer(llama, seed, prompts):
    task = capitals(llama, prompts=prompts, seed=seed)
    pairs = task.pairs(llama)
    assert len({(pair.clean, pair.corrupted) for pair in task.prompts}) == prompts
    for row, pair in enumerate(task.prompts):
        country, other = country_in(pair.clean, pair.group), country_in(pair.corrupted, pair.group)
        assert pair.good == f" {CAPITALS[country]}" != pair.bad == f" {CAPITALS[other]}"
        assert f" {country}".endswith(llama.tokenizer.decode(pairs.clean[row, pairs.roles["country"][row]]))
        assert pairs.roles["END"][row] == pairs.end
        # the country's tokens are all that differs
        differ = (pairs.clean[row] != pairs.corrupted[row]).nonzero().flatten()
        span = len(llama.tokens(f"of {country}")) - 1
        assert set(differ.tolist()) <= set(range(int(pairs.roles["country"][row]) - span + 1, pairs.end))
    templates = Counter(pair.group for pair in task.prompts)
    assert len(templates) == min(3, prompts)
    assert max(templates.values()) - min(templates.values()) <= (1 if prompts >= 3 else 0)


def test_countries_come_equally_often(llama):
    task = capitals(llama, prompts=66)
    usable = task.facts["countries"]
    assert 20 < usable < len(CAPITALS) and usable + len(task.facts["dropped countries"]) == len(CAPITALS)
    counts = Counter(country_in(pair.clean, pair.group) for pair in task.prompts)
    assert set(counts.values()) == {2} and len(counts) == usable == 33
    assert not set(counts) & set(task.facts["dropped countries"])


def test_the_answer_is_not_in_the_prompt():
    """Capitals named after their country, or the other way round, could be copied."""
    assert len(set(CAPITALS.values())) == len(CAPITALS)
    for country, capital in CAPITALS.items():
        assert not set(country.lower().split()) & set(capital.lower().split())
        assert country[:4].lower() != capital[:4].lower()


def test_the_seed_decides(llama):
    first, again, other = (capitals(llama, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.prompts != other.prompts


def test_countries_are_changed_for_others_of_as_many_tokens(words):
    front = "The capital city government of is called sits in the "
    model = words(front + "Rome Madrid Havana Baghdad Oslo Italy Spain")
    lengths = {country: len(model.tokens(f"of {country}")) for country in ("Italy", "Spain", "Cuba", "Iraq", "Norway")}
    assert lengths["Italy"] == lengths["Spain"] < lengths["Cuba"] == lengths["Iraq"] < lengths["Norway"]
    task = capitals(model, prompts=12)
    for pair in task.prompts:
        own = {country_in(pair.clean, pair.group), country_in(pair.corrupted, pair.group)}
        assert own in ({"Italy", "Spain"}, {"Cuba", "Iraq"})
    assert "Norway" in task.facts["dropped countries"] and task.facts["countries"] == 4
    assert task.pairs(model).padding is not None


def test_few_countries_are_said(words):
    front = "The capital city government of is called sits in the "
    model = words(front + "Rome Paris Madrid Italy Spain")
    task = capitals(model, prompts=4)
    assert {country_in(pair.clean, pair.group) for pair in task.prompts} == {"Italy", "Spain"}
    assert task.facts["countries"] == 2 and "France" in task.facts["dropped countries"]
    task.pairs(model)
    assert len(capitals(model, prompts=6)) == 6
    with pytest.raises(UsageError, match="capitals ran out of different prompts after 6 of 7: lower --prompts"):
        capitals(model, prompts=7)
    with pytest.raises(
        UsageError, match="has no two countries with the same number of tokens whose capitals are one token"
    ):
        capitals(words(front + "Rome Paris Italy"))
    with pytest.raises(UsageError, match="has 0 capitals of one token and 1 are needed"):
        capitals(words(front + "Italy Spain"))


def test_the_packaged_model_knows_them(llama):
    found = accuracy(llama, capitals(llama, prompts=33).pairs(llama))
    assert found.good_over_bad.value >= 0.95 and found.top1.value > 0.5
