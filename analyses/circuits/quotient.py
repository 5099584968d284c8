"""Quotients of means over the same prompts, with intervals, and controls that were drawn several times."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from torch import Tensor

from probe.frame.findings import Estimate

Z = 1.96  # standard errors in half of a 95 % interval
ANY_DRAW = ", from the lowest to the highest bound of any draw"
"""The bounds of a control that was drawn several times (`of_draws`), for the words of a claim."""


def divides(values: Tensor) -> bool:
    """Return whether the mean of values [prompts] is further from zero than its 95 % interval reaches."""
    if len(values) < 2:
        return False
    return abs(float(values.double().mean())) > Z * float(values.double().std()) / len(values) ** 0.5


def quotient(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Return mean(numerator) / mean(denominator), both [prompts], with its 95 % interval.

    The interval is the delta method's: the spread over prompts of numerator - quotient x denominator, over the size of
    the mean denominator. NaN where that mean is within its error of zero.
    """
    numerator, denominator = numerator.double(), denominator.double()
    below, count = float(denominator.mean()), len(denominator)
    if not divides(denominator):
        return Estimate(nan, n=count)
    value = float(numerator.mean()) / below
    half = Z * float((numerator - value * denominator).std()) / count**0.5 / abs(below)
    return Estimate(value, value - half, value + half, n=count)


def of_draws(draws: Sequence[Estimate]) -> Estimate | None:
    """Return the mean of a control's draws, from the lowest to the highest bound of any; None without draws.

    The bounds span all draws, so that a value above them is above every draw, its error included.
    """
    if not draws:
        return None
    mean = sum(each.value for each in draws) / len(draws)
    if not all(each.known for each in draws):
        return Estimate(mean, n=draws[0].n)
    return Estimate(mean, min(each.low for each in draws), max(each.high for each in draws), n=draws[0].n)
