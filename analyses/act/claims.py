"""The claims about attention calibration that a run of `probe intervene act` can refute."""

from __future__ import annotations

from probe.frame.findings import Claim, above

AGREES = 0.8
"""The rank correlation above which the gradient filter is said to rank heads as single runs do."""

MORE_THAN_RANDOM = Claim(
    name="more-than-random",
    text="Calibrating the sinks of the heads that the filter chooses lowers the loss more than those of random heads",
    source="Yu et al. 2024, abstract",
    quantity="loss with random heads minus loss with the best heads, nats, paired over held-out examples",
    control="loss without calibration minus loss with random heads, nats",
    rule=above(0),
)
MORE_THAN_BIAS = Claim(
    name="more-than-bias",
    text="Calibrating sinks lowers the loss more than a shift of the label prior alone",
    source="Yu et al. 2024, abstract, which reports gains without this control",
    quantity="loss with a label bias alone minus loss with the best heads, nats, paired over held-out examples",
    control="loss without calibration minus loss with the label bias alone, nats",
    rule=above(0),
)
FILTER_AGREES = Claim(
    name="filter-agrees",
    text="One backward pass ranks heads as running each head alone does",
    source="this project's replacement of the head filter of Yu et al. 2024",
    quantity="Spearman correlation of gradient and exact change of the loss, over heads",
    rule=above(AGREES),
)
CLAIMS = (MORE_THAN_RANDOM, MORE_THAN_BIAS, FILTER_AGREES)
