"""Needles: a sentence to hide, the question about it, and the part of the sentence that answers it.

There are two families, because heads specialise: some copy digits only (L6H0 of SmolLM2-135M), others words. A family
draws from two disjoint pools, so that heads scored on one pool can be pruned while the model answers needles of the
other. No answer repeats a word or a digit, because nothing would tell which of two equal tokens a head copies. No
answer holds a word of the sentence around it, because a model may say that word without having read the answer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from probe.analyses.texts.files import json_lines, short
from probe.errors import ProbeError, UsageError


@dataclass(frozen=True)
class Needle:
    """A sentence, its question and its answer; the last occurrence of `answer` in `text` is the one to copy."""

    text: str
    question: str
    answer: str
    family: str

    def __post_init__(self) -> None:
        if not self.answer or self.answer not in self.text:
            raise ProbeError(f"expected an answer that is a part of its needle {self.text!r}, got {self.answer!r}")


@dataclass(frozen=True)
class Pool:
    """The words that needles are made of."""

    cities: tuple[str, ...]
    activities: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the words, in hex; it tells runs with other words apart."""
        return hashlib.sha256(json.dumps([self.cities, self.activities]).encode()).hexdigest()


MAIN = Pool(
    cities=(
        "Oslo", "Lima", "Cairo", "Vienna", "Dublin", "Nairobi", "Hanoi", "Madrid", "Boston", "Prague", "Sydney",
        "Athens", "Havana", "Denver", "Warsaw", "Lagos", "Manila", "Geneva", "Quebec", "Bogota", "Seoul", "Tokyo",
        "Naples", "Perth",
    ),
    activities=(
        "eat a sandwich and sit near old trees on sunny days",
        "ride a wooden boat along quiet rivers at sunrise",
        "drink hot chocolate beside a library window",
        "listen for street musicians near every harbor",
        "climb an old bell tower and watch white birds",
        "buy fresh peaches at a night market",
        "rent a red bicycle and follow green canals",
        "feed hungry ducks behind a stone bridge",
        "watch puppet shows with young gardeners",
        "walk barefoot on wet beaches after rain",
        "visit a glass museum with some friends",
        "take slow trains up a snowy mountain",
    ),
)  # fmt: skip
HELD_OUT = Pool(
    cities=(
        "Rome", "Paris", "Berlin", "London", "Chicago", "Mumbai", "Lisbon", "Zurich", "Toronto", "Seattle", "Munich",
        "Helsinki", "Budapest", "Istanbul", "Santiago", "Singapore", "Brussels", "Edinburgh", "Barcelona", "Marseille",
        "Stockholm", "Copenhagen", "Amsterdam", "Melbourne",
    ),
    # chosen before any of them was run, and none was replaced afterwards: a held-out phrase that survives pruning stays
    activities=(
        "sketch tall bridges from an iron balcony",
        "mend torn fishing nets on windy docks",
        "plant yellow tulips along muddy lanes",
        "whistle folk songs under leaking umbrellas",
        "gather smooth pebbles near cold springs",
        "polish brass trumpets inside a dusty workshop",
        "roast chestnuts over glowing coals",
        "learn card tricks from retired sailors",
        "weave straw baskets with patient grandmothers",
        "photograph rusty trams before dawn",
        "stack firewood beside crooked cabins",
        "follow stray cats through narrow alleys",
    ),
)  # fmt: skip


def number(rng: random.Random, pool: Pool) -> Needle:
    """Return the special magic number of a city: five different digits, the first not 0."""
    city = rng.choice(pool.cities)
    first = rng.choice("123456789")
    digits = first + "".join(rng.sample("0123456789".replace(first, ""), 4))
    return Needle(
        text=f"The special magic number for {city} is {digits}.",
        question=f"What is the special magic number for {city}?",
        answer=digits,
        family="numbers",
    )


def activity(rng: random.Random, pool: Pool) -> Needle:
    """Return the best thing to do in a city: a phrase of words."""
    city = rng.choice(pool.cities)
    phrase = rng.choice(pool.activities)
    return Needle(
        text=f"The best thing to do in {city} is to {phrase}.",
        question=f"What is the best thing to do in {city}?",
        answer=phrase,
        family="activities",
    )


FAMILIES: Mapping[str, Callable[[random.Random, Pool], Needle]] = {"numbers": number, "activities": activity}


def read_needles(path: str | Path) -> tuple[Needle, ...]:
    """Return the needles of a JSONL file: one object a line with the strings "needle", "question" and "answer".

    The answer must be a part of the needle. An optional "family" groups needles in tables (default: "custom").
    """
    needles = []
    for place, fields in json_lines(path):
        wanted = [fields.get(key) for key in ("needle", "question", "answer")]
        if not all(isinstance(text, str) and text for text in wanted):
            raise UsageError(f'{place}: expected strings "needle", "question" and "answer", got {short(fields)}')
        try:
            needles.append(Needle(*wanted, family=str(fields.get("family", "custom"))))
        except ProbeError as error:
            raise UsageError(f"{place}: {error}") from error
    return tuple(needles)
