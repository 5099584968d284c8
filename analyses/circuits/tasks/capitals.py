"""Capitals: "The capital of France is" is answered by " Paris". The task asks for a fact, which IOI does not.

The corrupted prompt names another country with the same number of tokens, and bad is its capital. Countries whose
capital is named after them, or is contested, are left out. Capitals of several tokens are left out for each tokenizer.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import deck, distinct, fill, last_character, length, of_one_token
from probe.analyses.circuits.tasks.task import Task
from probe.errors import UsageError
from probe.patching.pairs import PromptPair

if TYPE_CHECKING:
    from probe.models import Model

NAME = "capitals"
TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is called",
    "The government of {country} sits in the city of",
)
CAPITALS = {
    "Afghanistan": "Kabul", "Albania": "Tirana", "Angola": "Luanda", "Argentina": "Buenos Aires", "Armenia": "Yerevan",
    "Australia": "Canberra", "Austria": "Vienna", "Azerbaijan": "Baku", "Bangladesh": "Dhaka", "Belarus": "Minsk",
    "Belgium": "Brussels", "Botswana": "Gaborone", "Bulgaria": "Sofia", "Cambodia": "Phnom Penh", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogota", "Croatia": "Zagreb", "Cuba": "Havana",
    "Cyprus": "Nicosia", "Denmark": "Copenhagen", "Ecuador": "Quito", "Egypt": "Cairo", "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa", "Fiji": "Suva", "Finland": "Helsinki", "France": "Paris", "Georgia": "Tbilisi",
    "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens", "Haiti": "Port-au-Prince", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "India": "Delhi", "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Jamaica": "Kingston", "Japan": "Tokyo", "Jordan": "Amman",
    "Kenya": "Nairobi", "Laos": "Vientiane", "Latvia": "Riga", "Lebanon": "Beirut", "Libya": "Tripoli",
    "Lithuania": "Vilnius", "Madagascar": "Antananarivo", "Malaysia": "Kuala Lumpur", "Malta": "Valletta",
    "Mongolia": "Ulaanbaatar", "Morocco": "Rabat", "Nepal": "Kathmandu", "Norway": "Oslo", "Oman": "Muscat",
    "Pakistan": "Islamabad", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Qatar": "Doha",
    "Romania": "Bucharest", "Russia": "Moscow", "Rwanda": "Kigali", "Senegal": "Dakar", "Serbia": "Belgrade",
    "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "Somalia": "Mogadishu", "Spain": "Madrid", "Sudan": "Khartoum",
    "Sweden": "Stockholm", "Switzerland": "Bern", "Syria": "Damascus", "Thailand": "Bangkok", "Turkey": "Ankara",
    "Uganda": "Kampala", "Ukraine": "Kyiv", "Uruguay": "Montevideo", "Venezuela": "Caracas", "Vietnam": "Hanoi",
    "Zambia": "Lusaka", "Zimbabwe": "Harare",
}  # fmt: skip


def capitals(model: Model, *, prompts: int = 40, seed: int = 0) -> Task:
    """Return prompts that ask for the capital of a country; countries and three templates come about equally often.

    good is the capital, bad that of the corrupted prompt's country. Roles: country, END. The group is the template.
    Raises UsageError where the tokenizer leaves fewer than two countries.
    """
    whole, _ = of_one_token(model, CAPITALS.values(), what="capitals")
    lengths = {country: length(model, country) for country, capital in CAPITALS.items() if capital in whole}
    shared = Counter(lengths.values())
    usable = [country for country in lengths if shared[lengths[country]] > 1]
    if len(usable) < 2:
        raise UsageError(
            f"{model.name} has no two countries with the same number of tokens whose capitals are one token: choose "
            "another task"
        )
    draw = random.Random(seed)
    countries = deck(usable, draw)

    def make(template: str) -> PromptPair:
        country = next(countries)
        alike = [each for each in usable if lengths[each] == lengths[country] and each != country]
        other = draw.choice(alike)
        clean, spans = fill(template, country=country)
        return PromptPair(
            clean=clean,
            corrupted=fill(template, country=other)[0],
            good=f" {CAPITALS[country]}",
            bad=f" {CAPITALS[other]}",
            roles={"country": spans["country"], "END": last_character(clean)},
            group=f"template {TEMPLATES.index(template) + 1}",
        )

    return Task(
        name=NAME,
        prompts=distinct(deck(TEMPLATES, draw), make, prompts, task=NAME),
        seed=seed,
        facts={"countries": len(usable), "dropped countries": [each for each in CAPITALS if each not in usable]},
    )
