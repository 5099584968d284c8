"""Colored Objects: three objects of three colours, and a question about the colour of one of them.

The task is that of Merullo et al. 2024, after BIG-bench. A block is

    Q: On the table, there is a red pen, an orange cup, and a blue bowl. What color is the cup?
    A:

and is answered " Orange". Blocks with their answers, the shots, stand in front of the block that asks. The corrupted
prompt differs in the queried object alone and therefore has another answer.

As in the authors' released prompts, the shots share no object and no colour with the block that asks, and colours are
lower case in the text and capitalised in answers. Eight colours are too few for several shots of different colours:
two shots may share colours, but no answer and no object.

`mug`, `leash` and `bracelet` take several tokens in most tokenizers. Objects are drawn again until the queried object
of the corrupted prompt has the same number of tokens as that of the clean prompt. Objects of several tokens therefore
stand in the text as often as others but are asked for less often.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import (
    Span,
    choose,
    deck,
    distinct,
    fill,
    last_character,
    length,
    of_one_token,
)
from probe.analyses.circuits.tasks.task import Task
from probe.errors import UsageError
from probe.patching.pairs import PromptPair

if TYPE_CHECKING:
    from probe.models import Model

NAME = "colored-objects"
FORMS = ("capital", "lower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
OBJECTS = (
    "pencil", "notebook", "pen", "cup", "plate", "jug", "mug", "puzzle", "textbook", "leash", "necklace", "bracelet",
    "bottle", "ball", "envelope", "lighter", "bowl",
)  # fmt: skip
SURFACES = ("table", "desk", "floor")
SIGHTS = ("there is", "you see", "I see")
THINGS = 3  # in a block
MOST_SHOTS = 3

BLOCK = (
    "Q: On the {surface}, {sight} {article0} {colour0} {object0}, {article1} {colour1} {object1}, "
    "and {article2} {colour2} {object2}. What color is the {query}?\nA:"
)


@dataclass(frozen=True)
class Block:
    """A scene: three coloured objects on a surface."""

    surface: str
    sight: str
    colours: tuple[str, ...]
    objects: tuple[str, ...]

    def asked(self, query: int) -> tuple[str, dict[str, Span]]:
        """Return the text of the block that asks for one of its objects, and the characters of its words."""
        words = {"surface": self.surface, "sight": self.sight, "query": self.objects[query]}
        for place, (colour, thing) in enumerate(zip(self.colours, self.objects, strict=True)):
            article = "an" if colour[0] in "aeiou" else "a"
            words |= {f"article{place}": article, f"colour{place}": colour, f"object{place}": thing}
        return fill(BLOCK, **words)


def colored_objects(
    model: Model, *, prompts: int = 40, seed: int = 0, shots: int = 1, form: str = "capital"
) -> Task:  # fmt: skip
    """Return Colored Objects prompts; the places of the right and of the corrupted answer come equally often.

    shots: 0 to 3 answered blocks in front. form: "capital" (" Orange") or "lower" (" orange") answers, in shots too.
    good is the right colour, bad the corrupted prompt's, choices those two and the third. Roles: "right", "wrong 1" (of
    bad) and "wrong 2", the colours in the block that asks; "query", the object that is asked for; END. The group of a
    prompt is its number of tokens. Raises UsageError where the tokenizer splits too many colours.
    """
    choose("form", form, FORMS, task=NAME)
    if not 0 <= shots <= MOST_SHOTS:
        raise UsageError(f"shots of {NAME} must be 0 to {MOST_SHOTS}, got {shots}")
    written = {colour: colour.capitalize() if form == "capital" else colour for colour in COLOURS}
    # the shots' answers differ from each other, and none of their colours is in the block that is asked
    least = THINGS + (max(THINGS, shots) if shots else 0)
    whole, dropped = of_one_token(model, written.values(), what="colours", least=least, before="A:")
    colours = [colour for colour in COLOURS if written[colour] in whole]
    lengths = {thing: length(model, thing) for thing in OBJECTS}
    draw = random.Random(seed)

    def block(free_colours: list[str], things: list[str]) -> Block:
        colours = tuple(draw.sample(free_colours, THINGS))
        return Block(draw.choice(SURFACES), draw.choice(SIGHTS), colours, tuple(things))

    def objects(query: int, other: int) -> list[str]:
        while True:
            drawn = draw.sample(OBJECTS, THINGS * (1 + shots))
            if lengths[drawn[query]] == lengths[drawn[other]]:
                return drawn

    def make(variant: tuple[int, ...]) -> PromptPair:
        query, other, third = variant
        things = objects(query, other)
        last = block(colours, things[:THINGS])
        free = [colour for colour in colours if colour not in last.colours]
        front = ""
        for number, answer in enumerate(draw.sample(free, shots), start=1):
            shot = block(free, things[THINGS * number : THINGS * (number + 1)])
            while answer not in shot.colours:
                shot = block(free, things[THINGS * number : THINGS * (number + 1)])
            front += f"{shot.asked(shot.colours.index(answer))[0]} {written[answer]}\n"
        text, spans = last.asked(query)
        clean = front + text
        places = {"right": f"colour{query}", "wrong 1": f"colour{other}", "wrong 2": f"colour{third}", "query": "query"}
        roles = {name: (spans[of][0] + len(front), spans[of][1] + len(front)) for name, of in places.items()}
        answers = tuple(f" {written[last.colours[place]]}" for place in variant)
        return PromptPair(
            clean=clean,
            corrupted=front + last.asked(other)[0],
            good=answers[0],
            bad=answers[1],
            choices=answers,
            roles=roles | {"END": last_character(clean)},
            group=f"{len(model.tokens(clean))} tokens",
        )

    return Task(
        name=NAME,
        prompts=distinct(deck(list(permutations(range(THINGS))), draw), make, prompts, task=NAME),
        seed=seed,
        options={"shots": shots, "form": form},
        facts={
            "colours": len(colours),
            "dropped colours": [colour for colour in COLOURS if written[colour] in dropped],
            "objects of several tokens": [thing for thing in OBJECTS if lengths[thing] > 1],
        },
    )
