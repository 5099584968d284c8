"""The claims that a repair tests: forcing the heads raises accuracy, and neither other heads nor other tokens do."""

from __future__ import annotations

from probe.frame.findings import Claim, above_control

QUANTITY = "share of prompts whose right answer beats the other choices, with the heads forced onto the wrong answers"
SOURCE = "Merullo et al. 2024, section 5"
REPAIRED = Claim(
    name="repaired",
    text="the heads that demote the wrong answer of one task demote it on the other, once they look at it",
    source=SOURCE,
    quantity=QUANTITY,
    control="the model as it is",
    rule=above_control(),
)
HEADS_MATTER = Claim(
    name="heads matter",
    text="other heads, forced onto the same tokens, raise accuracy less",
    source=SOURCE,
    quantity=QUANTITY,
    control="random heads, from the lowest to the highest bound of any draw",
    rule=above_control(),
)
TOKENS_MATTER = Claim(
    name="tokens matter",
    text="the same heads, forced onto other tokens, raise accuracy less",
    source=SOURCE,
    quantity=QUANTITY,
    control="random tokens, from the lowest to the highest bound of any draw",
    rule=above_control(),
)
CLAIMS = (REPAIRED, HEADS_MATTER, TOKENS_MATTER)
