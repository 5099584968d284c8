"""IOI: what every prompt must be, for many seeds and the packaged model's tokenizer, and how well the model does."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.analyses.circuits.tasks.ioi import CORRUPTIONS, MIXED, NAMES, OBJECTS, ORDERS, PLACES, TEMPLATES, ioi

SEEDS = st.integers(0, 2**32)


def people(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Z]\w+", text) if word in NAMES]


def other_words(text: str) -> str:
    return " ".join(word for word in re.findall(r"\w+|[.,]", text) if word not in NAMES)


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.sampled_from(ORDERS), st.sampled_from(CORRUPTIONS))
def test_every_prompt_is_what_its_order_and_corruption_say(llama, seed, order, corruption):
    task = ioi(llama, prompts=31, seed=seed, order=order, corruption=corruption)
    pairs = task.pairs(llama)
    texts = {(pair.clean, pair.corrupted) for pair in task.prompts}
    assert len(texts) == len(task) == 31
    for row, pair in enumerate(task.prompts):
        io, s = pair.good[1:], pair.bad[1:]
        own = pair.group.split()[0]
        assert order in ("mixed", own)
        assert people(pair.clean) == ([io, s, s] if own == "ABBA" else [s, io, s])
        if corruption == "flip":
            assert people(pair.corrupted) == [*people(pair.clean)[:2], io]
        else:
            assert len({*people(pair.corrupted), io, s}) == 5
        assert other_words(pair.clean) == other_words(pair.corrupted)
        decoded = {name: llama.tokenizer.decode(pairs.clean[row, at[row]]) for name, at in pairs.roles.items()}
        assert list(decoded) == ["IO", "S1", "S1+1", "S2", "END"]
        assert decoded["IO"] == pair.good and decoded["S1"] == decoded["S2"] == pair.bad
        assert pairs.roles["S1"][row] < pairs.roles["S2"][row] < pairs.roles["END"][row] == pairs.end
        assert (pairs.roles["IO"][row] < pairs.roles["S1"][row]) == (own == "ABBA")
        assert pairs.roles["S1+1"][row] == pairs.roles["S1"][row] + 1
        assert (decoded["S1+1"] == " and") == (own == "BABA")
        # names stand at the same places in both prompts, so a patch at a role means the same in both
        differ = (pairs.clean[row] != pairs.corrupted[row]).nonzero().flatten().tolist()
        roles = ("S2",) if corruption == "flip" else ("IO", "S1", "S2")
        assert differ == sorted(int(pairs.roles[name][row]) for name in roles)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from(ORDERS), st.integers(1, 70))
def test_templates_and_orders_come_equally_often(llama, seed, order, prompts):
    counts = Counter(pair.group for pair in ioi(llama, prompts=prompts, seed=seed, order=order).prompts)
    possible = 2 * MIXED if order == "mixed" else len(TEMPLATES)
    assert len(counts) == min(possible, prompts)
    assert max(counts.values()) - min(counts.values()) <= (1 if len(counts) == possible else 0)
    assert all(int(group.split()[1]) <= (MIXED if order == "mixed" else len(TEMPLATES)) for group in counts)


def test_prompts_of_a_group_have_as_many_tokens(llama):
    lengths: dict[str, set[int]] = {}
    for pair in ioi(llama, prompts=150, order="BABA").prompts:
        lengths.setdefault(pair.group, set()).add(len(llama.tokens(pair.clean)))
    assert len(lengths) == 15 and all(len(found) == 1 for found in lengths.values())


def test_the_seed_decides(llama):
    first, again, other = (ioi(llama, prompts=20, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert not {pair.clean for pair in first.prompts} & {pair.clean for pair in other.prompts}


def test_names_of_several_tokens_are_dropped_and_named(llama):
    """81 of the 99 names are one token of the packaged model."""
    facts = ioi(llama, prompts=1).facts
    assert facts["names"] == 81 and len(facts["dropped names"]) == 18 and facts["dropped nouns"] == []
    assert len(set(NAMES)) == 99
    for name in facts["dropped names"]:
        assert len(llama.tokens(f"to {name}")) > 2


def test_few_words_of_one_token_are_said(words):
    scene = "Then, and went to the gave a "
    model = words(scene + "Mary John store drink")
    task = ioi(model, prompts=2, order="ABBA")
    assert {pair.good for pair in task.prompts} | {pair.bad for pair in task.prompts} == {" Mary", " John"}
    assert task.facts["names"] == 2 and len(task.facts["dropped nouns"]) == len(PLACES) + len(OBJECTS) - 2
    with pytest.raises(UsageError, match="has 2 names of one token and 5 are needed"):
        ioi(model, corruption="abc")
    with pytest.raises(UsageError, match="has 0 places of one token and 1 are needed"):
        ioi(words(scene + "Mary John drink"))
    # two names, one place and one object: each template comes in two ways and no more
    assert len(ioi(model, prompts=30, order="ABBA")) == 30
    with pytest.raises(UsageError, match="ioi ran out of different prompts after 30 of 31: lower --prompts"):
        ioi(model, prompts=31, order="ABBA")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "abba"}, "order of ioi must be one of mixed, ABBA, BABA, got 'abba'"),
        ({"corruption": "abd"}, "corruption of ioi must be one of flip, abc, got 'abd'"),
        ({"prompts": 0}, "ioi needs at least one prompt, got 0: raise --prompts"),
    ],
)
def test_wrong_options_are_refused(llama, options, message):
    with pytest.raises(UsageError, match=message):
        ioi(llama, **options)


@pytest.mark.slow
def test_the_packaged_model_does_the_task(llama):
    """Measured with 200 prompts: IO over S in 99.5 %, first of all tokens in 90 %, LD 5.32 with a deviation of 2.04."""
    found = accuracy(llama, ioi(llama, prompts=56, seed=1).pairs(llama))
    assert found.good_over_bad.high > 0.995 and found.good_over_bad.value > 0.95
    assert found.top1.low < 0.9 < found.top1.high
    assert found.ld.low < 5.32 < found.ld.high
    assert 1.5 < found.ld_sd < 2.6
    assert found.best is None
