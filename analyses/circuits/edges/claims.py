"""The claims that scored edges test: the best edges make better circuits than random ones, and scores are right."""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, isnan, tanh

import torch
from torch import Tensor

from probe.analyses.circuits.quotient import ANY_DRAW, Z, quotient
from probe.edges.curves import area
from probe.frame.findings import Claim, Estimate, above, above_control, below_control

CONTROL = f"random circuits of the same sizes{ANY_DRAW}"
CMD = Claim(
    name="cmd",
    text="circuits of the edges with the largest scores are closer to the model than random circuits of the same sizes",
    source="Mueller et al. 2025, section 3",
    quantity="CMD, the area between faithfulness and 1 over the share of edges",
    control=CONTROL,
    rule=below_control(),
)
CPR = Claim(
    name="cpr",
    text="circuits of the edges that support the answer most keep more of it than random circuits of the same sizes",
    source="Mueller et al. 2025, section 3",
    quantity="CPR, the area under faithfulness over the share of edges",
    control=CONTROL,
    rule=above_control(),
)
AGREEMENT = Claim(
    name="agreement",
    text="the scores of the best edges follow their exact effects: they explain more than half of the variance",
    source="Syed et al. 2023; Hanna et al. 2024",
    quantity="Pearson correlation of scores and exact effects",
    rule=above(0.5**0.5),
)
CLAIMS = (CMD, CPR, AGREEMENT)


def cpr(difference: Tensor, clean: Tensor, corrupted: Tensor, percents: Sequence[float]) -> Estimate:
    """Return CPR with its interval over prompts, from logit differences [sizes, prompts], [prompts] and [prompts].

    CPR is linear in the mean logit differences, so it is a quotient of two means over prompts.
    """
    weights = area(torch.eye(len(percents)), percents)
    return quotient(weights @ (difference - corrupted).double(), clean - corrupted)


def cmd(difference: Tensor, clean: Tensor, corrupted: Tensor, percents: Sequence[float]) -> Estimate:
    """Return CMD with its interval over prompts; on which side of 1 each size lies is taken as known."""
    missing = (clean - difference).double()
    sides = (missing.mean(1) / (clean - corrupted).double().mean()).sign()
    return quotient((area(torch.eye(len(percents)), percents) * sides) @ missing, clean - corrupted)


def correlation(r: float, count: int) -> Estimate | None:
    """Return a Pearson correlation of `count` pairs with Fisher's 95 % interval; None where there is none."""
    if count < 4 or isnan(r):
        return None
    if abs(r) >= 1:
        return Estimate(r, r, r, n=count)
    half = Z / (count - 3) ** 0.5
    return Estimate(r, tanh(atanh(r) - half), tanh(atanh(r) + half), n=count)
