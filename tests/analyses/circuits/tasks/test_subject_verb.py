"""Agreement: prompts for many seeds with the packaged tokenizer, and how the model does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.analyses.circuits.tasks.subject_verb import ATTRACTORS, SUBJECTS, subject_verb

PLURALS = {noun + ("es" if noun == "box" else "s"): noun for noun in SUBJECTS + ATTRACTORS}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70))
def test_the_verb_has_the_subjects_number(llama, seed, prompts):
    task = subject_verb(llama, prompts=prompts, seed=seed)
    pairs = task.pairs(llama)
    assert pairs.padding is None and len({(pair.clean, pair.corrupted) for pair in task.prompts}) == prompts
    variants = Counter()
    for row, pair in enumerate(task.prompts):
        the, subject, preposition, the_other, attractor = pair.clean.split()
        assert (the, the_other, preposition) == ("The", "the", pair.group)
        assert PLURALS.get(subject, subject) in SUBJECTS and PLURALS.get(attractor, attractor) in ATTRACTORS
        plural = subject in PLURALS
        assert (pair.good, pair.bad) == ((" are", " is") if plural else (" is", " are"))
        changed = PLURALS[subject] if plural else next(many for many, one in PLURALS.items() if one == subject)
        assert pair.corrupted == f"The {changed} {preposition} the {attractor}"
        decoded = {name: llama.tokenizer.decode(pairs.clean[row, at[row]]) for name, at in pairs.roles.items()}
        assert decoded == {"subject": f" {subject}", "attractor": f" {attractor}", "END": f" {attractor}"}
        variants[plural, attractor in PLURALS, preposition] += 1
    assert len(variants) == min(16, prompts)
    assert max(variants.values()) - min(variants.values()) <= (1 if prompts >= 16 else 0)


def test_the_seed_decides(llama):
    first, again, other = (subject_verb(llama, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.prompts != other.prompts


def test_nouns_that_are_split_in_one_number_are_dropped(words):
    front = "The the near behind beside from is are "
    model = words(front + "key keys dog box boxes table tables wall")
    task = subject_verb(model, prompts=32)
    assert {pair.clean.split()[1] for pair in task.prompts} == {"key", "keys", "box", "boxes"}
    assert {pair.clean.split()[-1] for pair in task.prompts} == {"table", "tables"}
    assert task.facts["subjects"] == 2 and task.facts["attractors"] == 1 and "dog" in task.facts["dropped nouns"]
    assert len(task.facts["dropped nouns"]) == len(SUBJECTS) + len(ATTRACTORS) - 3
    with pytest.raises(UsageError, match="subject-verb ran out of different prompts after 32 of 33"):
        subject_verb(model, prompts=33)
    with pytest.raises(UsageError, match="has 0 plurals of one token and 1 are needed"):
        subject_verb(words(front + "key dog table tables"))


def test_the_packaged_model_agrees_in_number(llama):
    """Also where the nearer noun has the other number, so that the verb cannot follow that one."""
    task = subject_verb(llama, prompts=32)
    found = accuracy(llama, task.pairs(llama))
    assert found.good_over_bad.value > 0.95 and found.ld.low > 1
    against = [row for row, pair in enumerate(task.prompts) if (pair.good == " are") != pair.clean.endswith("s")]
    assert len(against) == 16
    assert accuracy(llama, task.pairs(llama).take(against)).good_over_bad.value > 0.9
