"""The claims that a repair tests: forcing the heads raises accuracy, and neither other heads nor other tokens do."""

from __future__ import annotations

from probe.analyses.circuits.quotient import ANY_DRAW
from probe.frame.findings import Claim, above_control


def _raised(name: str, text: str, control: str) -> Claim:
    """Return the claim that accuracy with the heads forced onto the wrong answers is above that of a control."""
    return Claim(
        name=name,
        text=text,
        source="Merullo et al. 2024, section 5",
        quantity="share of prompts whose right answer beats the other choices, with the heads forced onto the wrong "
        "answers",
        control=control,
        rule=above_control(),
    )


REPAIRED = _raised(
    "repaired",
    "the heads that demote the wrong answer of one task demote it on the other, once they look at it",
    "the model as it is",
)
HEADS_MATTER = _raised(
    "heads matter", "other heads, forced onto the same tokens, raise accuracy less", f"random heads{ANY_DRAW}"
)
TOKENS_MATTER = _raised(
    "tokens matter", "the same heads, forced onto other tokens, raise accuracy less", f"random tokens{ANY_DRAW}"
)
CLAIMS = (REPAIRED, HEADS_MATTER, TOKENS_MATTER)
