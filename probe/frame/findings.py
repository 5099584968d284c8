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
    """When a claim holds, in words and as a function of the estimate and its control (None without one)."""

    words: str
    verdict: Callable[[Estimate, Estimate | None], str]


def above(bound: float) -> Rule:
    """Return the rule that an estimate lies above a bound."""
    return _rule(f"holds if the whole interval lies above {bound:g}, does not if it lies at or below", _above, bound)


def below(bound: float) -> Rule:
    """Return the rule that an estimate lies below a bound."""
    return _rule(f"holds if the whole interval lies below {bound:g}, does not if it lies at or above", _below, bound)


def above_control() -> Rule:
    """Return the rule that an estimate lies above its control."""
    words = "holds if the interval lies wholly above the control's, does not if it lies at or below the control's value"
    return _rule(words, _above)


def below_control() -> Rule:
    """Return the rule that an estimate lies below its control."""
    words = "holds if the interval lies wholly below the control's, does not if it lies at or above the control's value"
    return _rule(words, _below)


def _rule(words: str, compare: Callable[[Estimate, Estimate], str], bound: float | None = None) -> Rule:
    """Return the rule that compares an estimate with `bound`, or with its control where `bound` is None."""

    def verdict(found: Estimate, control: Estimate | None) -> str:
        other = control if bound is None else Estimate(bound, bound, bound)
        return compare(found, other) if other is not None and found.known and other.known else UNCLEAR

    return Rule(words, verdict)


def _above(found: Estimate, other: Estimate) -> str:
    return HOLDS if found.low > other.high else FAILS if found.high <= other.value else UNCLEAR


def _below(found: Estimate, other: Estimate) -> str:
    return HOLDS if found.high < other.low else FAILS if found.low >= other.value else UNCLEAR


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
