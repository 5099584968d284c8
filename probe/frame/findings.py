"""Findings: a claim of a paper, what was measured of it beside its control, and the verdict that a rule computes.

A rule is a function of the measured value with its interval and of the control's. It says "holds" only where the
interval lies wholly on one side, so that noise gives "cannot tell" and never a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

HOLDS, FAILS, UNCLEAR, NOT_APPLICABLE = "holds", "does not hold", "cannot tell", "not applicable"
VERDICTS = (HOLDS, FAILS, UNCLEAR, NOT_APPLICABLE)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of samples behind it; bounds are NaN where there is no interval."""

    value: float
    low: float = nan
    high: float = nan
    n: int = 0

    @property
    def known(self) -> bool:
        """Return whether the value and both bounds are numbers."""
        return not (isnan(self.value) or isnan(self.low) or isnan(self.high))


@dataclass(frozen=True, slots=True)
class Rule:
    """When a claim holds and when it does not, in words and as functions of the estimate and its control.

    A claim cannot be told where a bound of the estimate is not known, or of the control if the rule `compares` them.
    """

    words: str
    holds: Callable[[Estimate, Estimate], bool]
    fails: Callable[[Estimate, Estimate], bool]
    compares: bool = False

    def verdict(self, found: Estimate, control: Estimate | None) -> str:
        """Return "holds", "does not hold" or "cannot tell"."""
        control = control or Estimate(nan)
        if not found.known or (self.compares and not control.known):
            return UNCLEAR
        return HOLDS if self.holds(found, control) else FAILS if self.fails(found, control) else UNCLEAR


def above(bound: float) -> Rule:
    """Return the rule that an estimate lies above a bound."""
    words = f"holds if the whole interval lies above {bound:g}, does not if it lies at or below"
    return Rule(words, lambda found, _: found.low > bound, lambda found, _: found.high <= bound)


def below(bound: float) -> Rule:
    """Return the rule that an estimate lies below a bound."""
    words = f"holds if the whole interval lies below {bound:g}, does not if it lies at or above"
    return Rule(words, lambda found, _: found.high < bound, lambda found, _: found.low >= bound)


def above_control() -> Rule:
    """Return the rule that an estimate lies above its control."""
    return Rule(
        "holds if the interval lies wholly above the control's, does not if it lies at or below the control's value",
        holds=lambda found, control: found.low > control.high,
        fails=lambda found, control: found.high <= control.value,
        compares=True,
    )


def below_control() -> Rule:
    """Return the rule that an estimate lies below its control."""
    return Rule(
        "holds if the interval lies wholly below the control's, does not if it lies at or above the control's value",
        holds=lambda found, control: found.high < control.low,
        fails=lambda found, control: found.low >= control.value,
        compares=True,
    )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that a run can refute.

    name: short, unique in its analysis. text: the claim. source: paper and section. quantity: what is measured, with
    its unit. control: what it is compared with; "" without one. rule: when the claim holds.
    """

    name: str
    text: str
    source: str
    quantity: str
    rule: Rule
    control: str = ""

    def finding(
        self, found: Estimate | None, control: Estimate | None = None, *, seed: int = 0, command: str = ""
    ) -> Finding:
        """Return the claim with what was measured; without an estimate it is not applicable."""
        verdict = NOT_APPLICABLE if found is None else self.rule.verdict(found, control)
        found, beside = found or Estimate(nan), control or Estimate(nan)
        return Finding(
            name=self.name, claim=self.text, source=self.source, quantity=self.quantity,
            value=found.value, low=found.low, high=found.high, n=found.n,
            control=self.control, control_value=beside.value, control_low=beside.low, control_high=beside.high,
            seed=seed, rule=self.rule.words, verdict=verdict, command=command,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One claim and what a run says of it; NaN stands where a number does not exist."""

    name: str
    claim: str
    source: str
    quantity: str
    value: float
    low: float
    high: float
    n: int
    control: str
    control_value: float
    control_low: float
    control_high: float
    seed: int
    rule: str
    verdict: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
