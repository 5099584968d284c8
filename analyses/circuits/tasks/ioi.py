"""Indirect object identification: "Then, Mary and John went to the store. John gave a drink to" is answered by " Mary".

The task is that of Wang et al. 2022. The first clause has two names. The second clause repeats one of them, the subject
S (S1, then S2), and the answer is the other one, the indirect object IO. The 15 templates, 8 places, 8 objects and 99
names are those of the authors' code. Each template has two orders, ABBA with IO first and BABA with S first.

The corrupted prompt has the same number of tokens and is one of two kinds:

    flip   S2 is replaced by IO, so that the answer swaps (Merullo et al. 2024): LD changes its sign
    abc    three other names fill the same template, so that no name repeats and neither answer is right (Wang et al.)

"mixed" takes the first 7 templates in both orders, as the authors' code does by default: 14 variants, in which order
and wording are not confounded; the published figures are of these. "ABBA" and "BABA" take all 15 in one order.

In contrast to that code, prompts are drawn from a seed, templates and orders come equally often, no prompt comes twice,
and the places of names are known by characters, never searched for by ids.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import choose, deck, distinct, fill, last_character, of_one_token
from probe.analyses.circuits.tasks.task import Task
from probe.patching.pairs import PromptPair

if TYPE_CHECKING:
    from probe.models import Model

NAME = "ioi"
ORDERS = ("mixed", "ABBA", "BABA")
CORRUPTIONS = ("flip", "abc")
MIXED = 7  # templates that "mixed" takes in each order

TEMPLATES = (
    "Then, {A} and {B} went to the {place}. {S} gave a {object} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave a {object} to",
    "Then, {A} and {B} were working at the {place}. {S} decided to give a {object} to",
    "Then, {A} and {B} were thinking about going to the {place}. {S} wanted to give a {object} to",
    "Then, {A} and {B} had a long argument, and afterwards {S} said to",
    "After {A} and {B} went to the {place}, {S} gave a {object} to",
    "When {A} and {B} got a {object} at the {place}, {S} decided to give it to",
    "When {A} and {B} got a {object} at the {place}, {S} decided to give the {object} to",
    "While {A} and {B} were working at the {place}, {S} gave a {object} to",
    "While {A} and {B} were commuting to the {place}, {S} gave a {object} to",
    "After the lunch, {A} and {B} went to the {place}. {S} gave a {object} to",
    "Afterwards, {A} and {B} went to the {place}. {S} gave a {object} to",
    "Then, {A} and {B} had a long argument. Afterwards {S} said to",
    "The {place} {A} and {B} went to had a {object}. {S} gave it to",
    "Friends {A} and {B} found a {object} at the {place}. {S} gave it to",
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
NAMES = (
    "Michael", "Christopher", "Jessica", "Matthew", "Ashley", "Jennifer", "Joshua", "Amanda", "Daniel", "David",
    "James", "Robert", "John", "Joseph", "Andrew", "Ryan", "Brandon", "Jason", "Justin", "Sarah", "William", "Jonathan",
    "Stephanie", "Brian", "Nicole", "Nicholas", "Anthony", "Heather", "Eric", "Elizabeth", "Adam", "Megan", "Melissa",
    "Kevin", "Steven", "Thomas", "Timothy", "Christina", "Kyle", "Rachel", "Laura", "Lauren", "Amber", "Brittany",
    "Danielle", "Richard", "Kimberly", "Jeffrey", "Amy", "Crystal", "Michelle", "Tiffany", "Jeremy", "Benjamin", "Mark",
    "Emily", "Aaron", "Charles", "Rebecca", "Jacob", "Stephen", "Patrick", "Sean", "Erin", "Jamie", "Kelly", "Samantha",
    "Nathan", "Sara", "Dustin", "Paul", "Angela", "Tyler", "Scott", "Katherine", "Andrea", "Gregory", "Erica", "Mary",
    "Travis", "Lisa", "Kenneth", "Bryan", "Lindsey", "Kristen", "Jose", "Alexander", "Jesse", "Katie", "Lindsay",
    "Shannon", "Vanessa", "Courtney", "Christine", "Alicia", "Cody", "Allison", "Bradley", "Samuel",
)  # fmt: skip


def ioi(
    model: Model, *, prompts: int = 40, seed: int = 0, order: str = "mixed", corruption: str = "flip"
) -> Task:  # fmt: skip
    """Return IOI prompts for a model's tokenizer, with balanced templates and orders; good is IO, bad is S.

    order: "mixed", "ABBA" or "BABA". corruption: "flip" or "abc". Roles: IO, S1, S1+1 (the token after S1), S2, END.
    The group of a prompt is its order and template, "ABBA 3". All prompts of a group have the same number of tokens,
    because names, places and objects of several tokens are dropped. Raises UsageError where too few names remain.
    """
    choose("order", order, ORDERS, task=NAME)
    choose("corruption", corruption, CORRUPTIONS, task=NAME)
    people = 2 if corruption == "flip" else 5
    names, without = of_one_token(model, NAMES, what="names", least=people)
    places, _ = of_one_token(model, PLACES, what="places")
    objects, _ = of_one_token(model, OBJECTS, what="objects")
    draw = random.Random(seed)
    variants = (
        [(number, each) for each in ("ABBA", "BABA") for number in range(MIXED)]
        if order == "mixed"
        else [(number, order) for number in range(len(TEMPLATES))]
    )

    def make(variant: tuple[int, str]) -> PromptPair:
        number, arrangement = variant
        io, subject, *others = draw.sample(names, people)
        scene = {"place": draw.choice(places), "object": draw.choice(objects)}
        first, second = (io, subject) if arrangement == "ABBA" else (subject, io)
        clean, spans = fill(TEMPLATES[number], A=first, B=second, S=subject, **scene)
        a, b, s = others or (first, second, io)
        corrupted, _ = fill(TEMPLATES[number], A=a, B=b, S=s, **scene)
        of_io, of_s1 = (spans["A"], spans["B"]) if arrangement == "ABBA" else (spans["B"], spans["A"])
        return PromptPair(
            clean=clean,
            corrupted=corrupted,
            good=f" {io}",
            bad=f" {subject}",
            # the space after S1 and the first letter behind it, whichever of the two begins the token
            roles={
                "IO": of_io,
                "S1": of_s1,
                "S1+1": (of_s1[1], of_s1[1] + 2),
                "S2": spans["S"],
                "END": last_character(clean),
            },
            group=f"{arrangement} {number + 1}",
        )

    return Task(
        name=NAME,
        prompts=distinct(deck(variants, draw), make, prompts, task=NAME),
        seed=seed,
        options={"order": order, "corruption": corruption},
        facts={
            "names": len(names),
            "dropped names": without,
            "dropped nouns": [word for word in PLACES + OBJECTS if word not in places + objects],
        },
    )
