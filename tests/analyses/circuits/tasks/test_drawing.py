"""Templates and the places of their words, decks in balance, prompts that do not repeat, words of one token."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.drawing import deck, distinct, fill, last_character, length, of_one_token
from probe.patching.pairs import PromptPair

WORDS = st.text(min_size=1, max_size=6)


@given(WORDS, WORDS)
def test_fields_stand_where_they_are_said_to(first, second):
    text, spans = fill("Then, {A} and {B}.", A=first, B=second)
    assert text == f"Then, {first} and {second}."
    assert {name: text[slice(*span)] for name, span in spans.items()} == {"A": first, "B": second}
    assert spans["A"][0] == 6 and spans["B"][1] == len(text) - 1


def test_a_field_that_comes_twice_stands_at_its_last_place():
    text, spans = fill("{a} or {a}", a="yes")
    assert text == "yes or yes" and spans == {"a": (7, 10)}


def test_the_last_character():
    assert last_character("A:") == (1, 2)


@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 100))
def test_a_deck_deals_every_card_before_any_comes_again(cards, dealt, seed):
    hand = list(islice(deck(range(cards), random.Random(seed)), dealt))
    for start in range(0, dealt, cards):
        assert len(set(hand[start : start + cards])) == len(hand[start : start + cards])
    assert set(hand) <= set(range(cards))


def test_a_deck_is_shuffled():
    hand = list(islice(deck(range(20), random.Random(0)), 40))
    assert hand[:20] != hand[20:] and hand[:20] != list(range(20))


def pair(clean: str) -> PromptPair:
    return PromptPair(clean, "other", " a", " b")


def test_a_repeated_prompt_is_drawn_again_for_its_own_variant():
    draws = iter("xxxy")
    made = distinct(iter("abc"), lambda variant: pair(variant if variant != "b" else next(draws)), 3, task="t")
    assert [each.clean for each in made] == ["a", "x", "c"]
    draws = iter("aab")
    made = distinct(iter([1, 2]), lambda variant: pair(next(draws)), 2, task="t")
    assert [each.clean for each in made] == ["a", "b"]


def test_variants_stay_in_balance_where_draws_repeat():
    draw = random.Random(0)
    made = distinct(deck("abc", draw), lambda variant: pair(variant + str(draw.randrange(5))), 15, task="t")
    assert Counter(each.clean[0] for each in made) == {"a": 5, "b": 5, "c": 5}
    with pytest.raises(UsageError, match="t ran out of different prompts after 15 of 16: lower --prompts"):
        distinct(deck("abc", draw), lambda variant: pair(variant + str(draw.randrange(5))), 16, task="t")


def test_words_are_counted_in_tokens_after_a_space(llama):
    assert [length(llama, word) for word in ("cup", "mug", "leash")] == [1, 2, 2]
    assert of_one_token(llama, ["cup", "mug", "pen"], what="things") == (["cup", "pen"], ["mug"])
    with pytest.raises(
        UsageError, match="llama has 1 things of one token and 2 are needed, because the task needs whole"
    ):
        of_one_token(llama, ["cup", "mug"], what="things", least=2)
