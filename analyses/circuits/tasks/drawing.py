"""Random prompts: texts with the places of their words, words of one token, balanced variants, no repeat."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import Formatter
from typing import TYPE_CHECKING, TypeVar

from probe.errors import UsageError
from probe.patching.pairs import PromptPair

if TYPE_CHECKING:
    from probe.models import Model

Item = TypeVar("Item")
Span = tuple[int, int]

TRIES = 1000  # draws of one variant that may repeat an earlier prompt before the task is said to be exhausted


def fill(template: str, **words: str) -> tuple[str, dict[str, Span]]:
    """Return the text of a template such as "Then, {A} and {B}", and the characters [start, end) of each field.

    For a field that comes more than once, the last place is returned.
    """
    text, spans = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans


def last_character(text: str) -> Span:
    """Return the characters [start, end) whose last token is END."""
    return len(text) - 1, len(text)


def length(model: Model, word: str, *, before: str = "the") -> int:
    """Return how many tokens a word takes in the middle of a text, including the space in front of it."""
    return len(model.tokens(f"{before} {word}", bos=False)) - len(model.tokens(before, bos=False))


def of_one_token(
    model: Model, words: Iterable[str], *, what: str, least: int = 1, before: str = "the"
) -> tuple[list[str], list[str]]:
    """Return the words that are one token after a space, and the others.

    Raises UsageError, which calls the words `what`, where fewer than `least` remain.
    """
    kept, dropped = [], []
    for word in words:
        (kept if length(model, word, before=before) == 1 else dropped).append(word)
    if len(kept) < least:
        raise UsageError(
            f"{model.name} has {len(kept)} {what} of one token and {least} are needed, because the task needs whole "
            f"words: choose another model or another task"
        )
    return kept, dropped


def deck(items: Sequence[Item], draw: random.Random) -> Iterator[Item]:
    """Yield the items over and over, shuffled for every round: at any point their counts differ by at most one."""
    while True:
        yield from draw.sample(items, len(items))


def distinct(
    variants: Iterator[Item], make: Callable[[Item], PromptPair], count: int, *, task: str
) -> tuple[PromptPair, ...]:
    """Return `count` different pairs, one for each variant in turn; raise UsageError where there are fewer.

    A pair that repeats an earlier one is drawn again for the same variant, which keeps the variants in balance.
    """
    if count < 1:
        raise UsageError(f"{task} needs at least one prompt, got {count}: raise --prompts")
    seen: dict[tuple[str, str], PromptPair] = {}
    for _ in range(count):
        variant = next(variants)
        for _ in range(TRIES):
            pair = make(variant)
            if (pair.clean, pair.corrupted) not in seen:
                break
        else:
            raise UsageError(f"{task} ran out of different prompts after {len(seen)} of {count}: lower --prompts")
        seen[pair.clean, pair.corrupted] = pair
    return tuple(seen.values())


def choose(option: str, value: str, allowed: Sequence[str], *, task: str) -> None:
    """Raise UsageError where an option has a value that is not allowed."""
    if value not in allowed:
        raise UsageError(f"{option} of {task} must be one of {', '.join(allowed)}, got {value!r}")
