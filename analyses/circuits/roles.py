"""What a head of a circuit is called: by the answers that it reads from END, and by which of them it helps.

    mover             reads the right answer, and supports it
    copy suppression  reads the right answer, and works against it
    negative mover    reads a wrong answer, and supports the right one by demoting it
    wrong mover       reads a wrong answer, and works against the right one
    parked            reads no answer; most of its row is on the first token
    other             reads something else

The names are Wang et al.'s and Merullo et al.'s; that a head reads an answer says what its row does, not why.
"""

from __future__ import annotations

from probe.analyses.circuits.end_attention import FIRST, EndAttention
from probe.heads import Head

SUBJECT = ("S1", "S2")
READS = 0.15
"""The weight of END's row from which on a head reads an answer."""


def is_right(role: str) -> bool:
    """Whether a role of a prompt is the right answer's: IO of IOI, "right" elsewhere."""
    return role in ("IO", "right")


def is_wrong(role: str) -> bool:
    """Whether a role of a prompt is a wrong answer's."""
    return role in SUBJECT or role.startswith("wrong")


def reading(attention: EndAttention, head: Head) -> tuple[float, float]:
    """The weights of a head's END row on the right answer and on the wrong answer that it reads most.

    One answer may stand in a prompt twice, as IOI's subject does (S1, S2); of several wrong answers each counts alone,
    or a head that reads all answers alike would seem to read the wrong ones.
    """
    weights = attention.of(head)
    right = sum(weight for role, weight in weights.items() if is_right(role))
    subject = sum(weight for role, weight in weights.items() if role in SUBJECT)
    others = [weight for role, weight in weights.items() if is_wrong(role) and role not in SUBJECT]
    return right, max([subject, *others])


def called(attention: EndAttention, head: Head, effect: float) -> str:
    """The name of a head with this effect, positive where it supports the right answer."""
    right, wrong = reading(attention, head)
    if max(right, wrong) < READS:
        return "parked" if attention.of(head)[FIRST] > 0.5 else "other"
    if right >= wrong:
        return "mover" if effect > 0 else "copy suppression"
    return "negative mover" if effect > 0 else "wrong mover"
