"""Names for the heads of a circuit, by the answer that a head reads from END and by whether it supports the right one.

    mover             reads the right answer, and supports it
    copy suppression  reads the right answer, and works against it
    negative mover    reads a wrong answer, and supports the right one by demoting it
    wrong mover       reads a wrong answer, and works against the right one
    parked            reads no answer; most of its row is on the first token
    other             reads something else

The names are those of Wang et al. 2022 and Merullo et al. 2024. They describe what the head's END row does, not why.
"""

from __future__ import annotations

from probe.analyses.circuits.end_attention import FIRST, EndAttention
from probe.heads import Head

ROLES = (
    "A mover reads the right answer and supports it; a negative mover reads a wrong answer and demotes it; copy "
    "suppression reads the right answer and demotes it; a wrong mover reads a wrong answer and supports it; a parked "
    "head puts most of its row on the first token."
)
"""The names, for the line under a table."""
SUBJECT = ("S1", "S2")
READS = 0.15
"""A head reads an answer if its END row puts at least this weight on it."""


def is_right(role: str) -> bool:
    """Return whether a role is the right answer's: IO in IOI, "right" in other tasks."""
    return role in ("IO", "right")


def is_wrong(role: str) -> bool:
    """Return whether a role is a wrong answer's."""
    return role in SUBJECT or role.startswith("wrong")


def reading(attention: EndAttention, head: Head) -> tuple[float, float]:
    """Return the weights of a head's END row on the right answer and on the wrong answer that it reads most.

    One answer may stand in a prompt twice, as the subject of IOI does (S1, S2), and its weights are added. Different
    wrong answers are not added: a head that reads all answers alike would seem to read the wrong ones.
    """
    weights = attention.of(head)
    right = sum(weight for role, weight in weights.items() if is_right(role))
    subject = sum(weight for role, weight in weights.items() if role in SUBJECT)
    others = [weight for role, weight in weights.items() if is_wrong(role) and role not in SUBJECT]
    return right, max([subject, *others])


def called(attention: EndAttention, head: Head, effect: float) -> str:
    """Return the name of a head with this effect, which is positive where it supports the right answer."""
    right, wrong = reading(attention, head)
    if max(right, wrong) < READS:
        return "parked" if attention.of(head)[FIRST] > 0.5 else "other"
    if right >= wrong:
        return "mover" if effect > 0 else "copy suppression"
    return "negative mover" if effect > 0 else "wrong mover"
