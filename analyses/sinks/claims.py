"""The claims about attention sinks and massive activations that a run of `probe sinks` can refute."""

from __future__ import annotations

from probe.frame.findings import Claim, Rule, above_control, below

HARMLESS = 0.1
"""A rise of the loss below this many nats per token counts as no harm; zeroing the dimension costs several nats."""


BELOW_HALF_OF_CONTROL = Rule(
    "holds if the interval lies wholly below half of the control's, does not if it lies wholly at or above it",
    holds=lambda found, control: found.high < control.low / 2,
    fails=lambda found, control: found.low >= control.high / 2,
    compares=True,
)
FIRST_TOKEN = Claim(
    name="first-token",
    text="The first token is a sink of more heads than a later token is",
    source="Gu et al. 2024 (sink rate); Xiao et al. 2023 (attention to the first token)",
    quantity="sink rate of the first token",
    control="mean sink rate of the later tokens",
    rule=above_control(),
)
SMALL_VALUE = Claim(
    name="small-value",
    text="Heads whose sink is the first token read a small value vector there, so attending to it adds little",
    source="Gu et al. 2024, value vectors of sinks",
    quantity="norm of the first value over the median norm of the others, in heads that count in the sink rate",
    rule=below(1.0),
)
ZERO = Claim(
    name="zero-ruins",
    text="Setting the largest massive dimension of the first token to zero ruins the model",
    source="Sun et al. 2024, massive activations set to zero or to their mean",
    quantity="rise of the loss in nats per token",
    control="with a neighbouring dimension at zero",
    rule=above_control(),
)
MEAN = Claim(
    name="mean-harmless",
    text="Setting that dimension to its mean over other texts does no harm: it holds a constant",
    source="Sun et al. 2024, massive activations set to zero or to their mean",
    quantity="rise of the loss in nats per token",
    control="with the dimension at zero",
    rule=below(HARMLESS),
)
CAUSE = Claim(
    name="massive-causes-sink",
    text="The massive activation is the cause of the attention to the first token: without it, most of that is gone",
    source="Sun et al. 2024, massive activations and attention",
    quantity="attention to the first token in later layers, with the dimension at zero",
    control="with a neighbouring dimension at zero",
    rule=BELOW_HALF_OF_CONTROL,
)
CLAIMS = (FIRST_TOKEN, SMALL_VALUE, ZERO, MEAN, CAUSE)
