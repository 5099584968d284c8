"""The stock rules on both sides of their bounds and in between, and findings made of them."""

from __future__ import annotations

from math import isnan, nan

import pytest

from probe.frame.findings import (
    FAILS,
    HOLDS,
    NOT_APPLICABLE,
    UNCLEAR,
    Claim,
    Estimate,
    above,
    above_control,
    below,
    below_control,
)

MIDDLE = Estimate(0.5, 0.4, 0.6, n=10)


@pytest.mark.parametrize(
    "low, high, of_above, of_below",
    [
        (0.6, 0.7, HOLDS, FAILS),
        (0.3, 0.4, FAILS, HOLDS),
        (0.4, 0.6, UNCLEAR, UNCLEAR),
        (0.5, 0.6, UNCLEAR, FAILS),  # an interval that touches the bound lies not wholly above it
        (0.4, 0.5, FAILS, UNCLEAR),
        (nan, 0.9, UNCLEAR, UNCLEAR),
        (nan, nan, UNCLEAR, UNCLEAR),
    ],
)
def test_rules_with_a_bound(low, high, of_above, of_below):
    found = Estimate(0.9, low, high, n=3)
    assert above(0.5).verdict(found, None) == of_above
    assert below(0.5).verdict(found, None) == of_below


@pytest.mark.parametrize(
    "found, of_above, of_below",
    [
        (Estimate(0.8, 0.7, 0.9), HOLDS, FAILS),
        (Estimate(0.2, 0.1, 0.3), FAILS, HOLDS),
        (Estimate(0.55, 0.45, 0.65), UNCLEAR, UNCLEAR),
        (Estimate(0.45, 0.35, 0.55), UNCLEAR, UNCLEAR),
        (Estimate(0.8, nan, nan), UNCLEAR, UNCLEAR),
        (Estimate(nan, 0.7, 0.9), UNCLEAR, UNCLEAR),
    ],
)
def test_rules_with_a_control(found, of_above, of_below):
    assert above_control().verdict(found, MIDDLE) == of_above
    assert below_control().verdict(found, MIDDLE) == of_below


@pytest.mark.parametrize("rule", [above_control(), below_control()])
def test_without_a_known_control_nothing_is_decided(rule):
    for control in (None, Estimate(0.5), Estimate(nan, 0.1, 0.2)):
        for found in (Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.0, 0.2)):
            assert rule.verdict(found, control) == UNCLEAR


def test_a_rule_says_its_bound_in_words():
    assert "above 0.25" in above(0.25).words and "below 0.25" in below(0.25).words
    assert "above the control's" in above_control().words and "below the control's" in below_control().words


CLAIM = Claim(
    name="one", text="It is more", source="Paper, section 1", quantity="share", control="random heads",
    rule=above_control(),
)  # fmt: skip


def test_a_finding_holds_everything_of_the_claim_and_the_run():
    found = CLAIM.finding(Estimate(0.8, 0.7, 0.9, n=12), MIDDLE, seed=3, command="probe tiny")
    assert found.to_dict() == {
        "name": "one", "claim": "It is more", "source": "Paper, section 1", "quantity": "share", "value": 0.8,
        "low": 0.7, "high": 0.9, "n": 12, "control": "random heads", "control_value": 0.5, "control_low": 0.4,
        "control_high": 0.6, "seed": 3, "rule": CLAIM.rule.words, "verdict": HOLDS, "command": "probe tiny",
    }  # fmt: skip


def test_without_an_estimate_a_claim_is_not_applicable():
    found = CLAIM.finding(None, MIDDLE)
    assert found.verdict == NOT_APPLICABLE and isnan(found.value) and found.n == 0 and found.control_value == 0.5


def test_an_estimate_without_an_interval_is_not_known():
    assert MIDDLE.known and not Estimate(0.5).known and not Estimate(0.5, 0.4).known
    assert CLAIM.finding(Estimate(0.9, n=1), MIDDLE).verdict == UNCLEAR
