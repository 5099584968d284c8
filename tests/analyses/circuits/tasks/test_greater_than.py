"""Greater-Than: years for tokenizers of two-digit numerals, and refusal for others."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.greater_than import CENTURIES, NOUNS, greater_than

YEARS = re.compile(r"The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)")
TEXT = "The lasted from the year to " + " ".join(NOUNS)
NUMERALS = " ".join(f"{number:02d}" for number in range(100))


@pytest.fixture(scope="module")
def two_digits(words):
    return words(f"{TEXT} {NUMERALS}")


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_good_is_above_the_year_and_bad_as_far_below(two_digits, seed, prompts):
    task = greater_than(two_digits, prompts=prompts, seed=seed)
    pairs = task.pairs(two_digits)
    assert len({(pair.clean, pair.corrupted) for pair in task.prompts}) == prompts
    for row, pair in enumerate(task.prompts):
        noun, century, start, again = YEARS.fullmatch(pair.clean).groups()
        assert noun in NOUNS and century == again in CENTURIES and pair.group == f"century {century}"
        assert pair.corrupted == pair.clean.replace(f"year {century}{start}", f"year {century}01")
        good, bad = int(pair.good), int(pair.bad)
        assert 1 < bad < int(start) < good <= 99 and good - int(start) == int(start) - bad
        assert len(pair.good) == len(pair.bad) == 2
        assert two_digits.tokenizer.decode(pairs.clean[row, pairs.roles["start"][row]]) == start
        assert pairs.roles["END"][row] == pairs.end
    counts = Counter(pair.group for pair in task.prompts)
    assert len(counts) == min(len(CENTURIES), prompts)
    assert max(counts.values()) - min(counts.values()) <= (1 if prompts >= len(CENTURIES) else 0)


def test_nouns_come_equally_often(two_digits):
    counts = Counter(pair.clean.split()[1] for pair in greater_than(two_digits, prompts=3 * len(NOUNS)).prompts)
    assert len(counts) == len(NOUNS) and set(counts.values()) == {3}


def test_the_seed_decides(two_digits):
    first, again, other = (greater_than(two_digits, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.prompts != other.prompts


def test_only_numerals_of_one_token_are_used(words):
    known = [f"{number:02d}" for number in range(1, 100, 2)]
    model = words(f"{TEXT} {' '.join(known)}")
    task = greater_than(model, prompts=60)
    assert task.facts["numerals"] == dict.fromkeys(CENTURIES, len(known))
    for pair in task.prompts:
        assert {pair.good, pair.bad, YEARS.fullmatch(pair.clean)[3]} <= set(known)
    with pytest.raises(UsageError, match="greater-than needs years of two tokens"):
        greater_than(words(f"{TEXT} {' '.join(known[1:])}"))  # without 01, the corrupted year
    assert greater_than(words(f"{TEXT} {' '.join(known[:20])}")).facts["numerals"]["17"] == 20
    with pytest.raises(UsageError, match="greater-than needs years of two tokens"):
        greater_than(words(f"{TEXT} {' '.join(known[:19])}"))  # too few for prompts to differ


@pytest.mark.parametrize("digits", [r"\d", r"\d{1,3}", r"\d+"])
def test_numerals_cut_otherwise_are_refused(words, digits):
    years = " ".join(str(year) for year in range(1100, 1800))
    with pytest.raises(UsageError, match=r"such as 17 and 32 in 1732, and .* splits them otherwise: choose another"):
        greater_than(words(f"{TEXT} {NUMERALS} {years}", digits=digits))


def test_the_packaged_tokenizer_splits_digits(llama):
    with pytest.raises(UsageError, match=r"greater-than needs years of two tokens, .* and llama splits them otherwise"):
        greater_than(llama)
