"""The claims that a comparison tests: two tasks share more heads than unrelated tasks do, and than chance gives."""

from __future__ import annotations

from probe.analyses.measures.intervals import wilson
from probe.frame.findings import Claim, Estimate, above_control

QUANTITY = "share of the heads with the largest effects on the logits that both tasks have"
SHARED = Claim(
    name="shared",
    text="the two tasks share more heads than the first task shares with an unrelated one",
    source="Merullo et al. 2024, section 4",
    quantity=QUANTITY,
    control="with the unrelated task",
    rule=above_control(),
)
CHANCE = Claim(
    name="chance",
    text="the two tasks share more heads than chance gives",
    source="Merullo et al. 2024, section 4",
    quantity=QUANTITY,
    control="by chance",
    rule=above_control(),
)
CLAIMS = (SHARED, CHANCE)


def shared_of(count: int, k: int) -> Estimate:
    """Return the share of k heads that two tasks have in common, with Wilson's 95 % interval."""
    return Estimate(count / k, *wilson(count, k), n=k)
