"""Greater-Than: "The war lasted from the year 1732 to the year 17" is answered by any two digits above 32.

The task is that of Hanna et al. 2023. The corrupted prompt's first year ends in 01, which rules nothing out. The paper
measures a difference of probabilities between all years above the first one and all others. Here the measure is the
logit difference of two drawn numerals, as in every task: good is above the first year's, and bad is below it by the
same distance. Both are above the corrupted year. The corrupted LD is therefore the model's preference between the two
numerals, and need not be the opposite of the clean LD.

Numerals must be single tokens after a century ("17" and "32" in 1732). Tokenizers that split digits, as those of SmolLM
and Llama 2 do, or that take three digits at a time, as that of Llama 3 does, are refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import deck, distinct, fill, last_character
from probe.analyses.circuits.tasks.task import Task
from probe.errors import UsageError
from probe.patching.pairs import PromptPair, answer

if TYPE_CHECKING:
    from probe.models import Model

NAME = "greater-than"
TEMPLATE = "The {noun} lasted from the year {century}{start} to the year {century}"
CENTURIES = ("11", "12", "13", "14", "15", "16", "17")
NUMERALS = tuple(f"{number:02d}" for number in range(1, 100))
CORRUPTED = "01"
LEAST = 20  # numerals of one token without which a century is left out
NOUNS = (
    "war", "siege", "campaign", "conflict", "expedition", "rebellion", "revolt", "dispute", "reign", "rule", "voyage",
    "journey", "drought", "famine", "plague", "alliance", "truce", "trial", "construction", "quarrel",
)  # fmt: skip


def greater_than(model: Model, *, prompts: int = 40, seed: int = 0) -> Task:
    """Return Greater-Than prompts with balanced centuries and nouns; raise UsageError where numerals are split.

    good is above the first year, and bad is below it by the same distance. Roles: start (the first year's last two
    digits), END. The group is the century.
    """
    numerals = {century: found for century in CENTURIES if CORRUPTED in (found := _numerals(model, century))}
    choices = {century: list(_triples(found)) for century, found in numerals.items() if len(found) >= LEAST}
    choices = {century: found for century, found in choices.items() if found}
    if not choices:
        raise UsageError(
            f"{NAME} needs years of two tokens, such as 17 and 32 in 1732, and {model.name} splits them otherwise: "
            f"choose another model or another task"
        )
    draw = random.Random(seed)
    nouns = deck(NOUNS, draw)

    def make(century: str) -> PromptPair:
        start, good, bad = draw.choice(choices[century])
        words = {"noun": next(nouns), "century": century}
        clean, spans = fill(TEMPLATE, start=start, **words)
        return PromptPair(
            clean=clean,
            corrupted=fill(TEMPLATE, start=CORRUPTED, **words)[0],
            good=good,
            bad=bad,
            roles={"start": spans["start"], "END": last_character(clean)},
            group=f"century {century}",
        )

    return Task(
        name=NAME,
        prompts=distinct(deck(list(choices), draw), make, prompts, task=NAME),
        seed=seed,
        facts={"numerals": {century: len(numerals[century]) for century in choices}},
    )


def _numerals(model: Model, century: str) -> list[str]:
    """Return the numerals that are one token where they follow a century."""
    prompt = model.tokens(f"to the year {century}")
    found = []
    for numeral in NUMERALS:
        try:
            answer(model, prompt, numeral)
        except UsageError:
            continue
        found.append(numeral)
    return found


def _triples(numerals: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield every start with a numeral above it, and one below it by the same distance and above the corrupted year."""
    known = set(numerals)
    for start, distance in product(numerals, range(1, 50)):
        good, bad = f"{int(start) + distance:02d}", f"{int(start) - distance:02d}"
        if good in known and bad in known and int(bad) > int(CORRUPTED):
            yield start, good, bad
