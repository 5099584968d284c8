"""Subject-verb agreement: "The keys near the table" is answered by " are", whatever the number of the nearer noun.

The corrupted prompt has the subject in its other number, so that the answer flips. In half of the prompts the nearer
noun (the attractor) has the subject's number, in the other half the other number, after Linzen et al. 2016. The answer
is not copied from the prompt, which makes the task the control that shares least with IOI.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import deck, distinct, fill, last_character, of_one_token
from probe.analyses.circuits.tasks.task import Task
from probe.patching.pairs import PromptPair

if TYPE_CHECKING:
    from probe.models import Model

NAME = "subject-verb"
TEMPLATE = "The {subject} {preposition} the {attractor}"
PREPOSITIONS = ("near", "behind", "beside", "from")
VERBS = {"singular": " is", "plural": " are"}
SUBJECTS = (
    "key", "book", "picture", "letter", "box", "car", "dog", "boy", "girl", "teacher", "student", "doctor", "lawyer",
    "friend", "sister", "brother", "driver", "artist", "horse", "bird", "chair", "bag", "toy", "lamp",
)  # fmt: skip
ATTRACTORS = (
    "cabinet", "table", "house", "tree", "door", "school", "wall", "river", "garden", "building", "window", "store",
    "hotel", "farm", "office", "bridge", "hospital", "station", "tower", "castle",
)  # fmt: skip


def subject_verb(model: Model, *, prompts: int = 40, seed: int = 0) -> Task:
    """Return agreement prompts with balanced numbers of subject and attractor and balanced prepositions.

    good is the verb of the subject's number, bad the other. Roles: subject, attractor (which is END too), END. The
    group is the preposition. Nouns that are not one token in both numbers are dropped; raises UsageError without any.
    """
    subjects, attractors = _nouns(model, SUBJECTS), _nouns(model, ATTRACTORS)
    draw = random.Random(seed)
    variants = list(product(VERBS, VERBS, PREPOSITIONS))

    def make(variant: tuple[str, str, str]) -> PromptPair:
        number, nearer, preposition = variant
        other = "plural" if number == "singular" else "singular"
        noun = draw.choice(subjects)
        words = {"preposition": preposition, "attractor": _written(draw.choice(attractors), nearer)}
        clean, spans = fill(TEMPLATE, subject=_written(noun, number), **words)
        return PromptPair(
            clean=clean,
            corrupted=fill(TEMPLATE, subject=_written(noun, other), **words)[0],
            good=VERBS[number],
            bad=VERBS[other],
            roles={"subject": spans["subject"], "attractor": spans["attractor"], "END": last_character(clean)},
            group=preposition,
        )

    return Task(
        name=NAME,
        prompts=distinct(deck(variants, draw), make, prompts, task=NAME),
        seed=seed,
        facts={
            "subjects": len(subjects),
            "attractors": len(attractors),
            "dropped nouns": [noun for noun in SUBJECTS + ATTRACTORS if noun not in subjects + attractors],
        },
    )


def _nouns(model: Model, nouns: tuple[str, ...]) -> list[str]:
    """Return the nouns that are one token in both numbers."""
    singular, _ = of_one_token(model, nouns, what="nouns")
    plural, _ = of_one_token(model, [_written(noun, "plural") for noun in singular], what="plurals")
    return [noun for noun in singular if _written(noun, "plural") in plural]


def _written(noun: str, number: str) -> str:
    return noun if number == "singular" else noun + ("es" if noun.endswith("x") else "s")
