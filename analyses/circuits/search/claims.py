"""The claim that a search tests: the circuit keeps more of the answer than random circuits of its size."""

from __future__ import annotations

from probe.analyses.circuits.quotient import ANY_DRAW
from probe.frame.findings import Claim, above_control

FAITHFUL = Claim(
    name="faithful",
    text="the circuit keeps more of the answer than random circuits of the same size",
    source="Wang et al. 2022, section 4",
    quantity="faithfulness, the share of the logit difference that is left with all other heads knocked out",
    control=f"random circuits{ANY_DRAW}",
    rule=above_control(),
)
CLAIMS = (FAITHFUL,)
