"""Claims come out as every verdict, tables and scores can be written, and no percentage has a denominator near zero."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from probe.analyses import analysis_of
from probe.analyses.circuits.edges.claims import cmd, correlation, cpr
from probe.analyses.circuits.quotient import of_draws, quotient
from probe.edges.curves import CircuitCurve
from probe.frame.findings import FAILS, HOLDS, UNCLEAR, Estimate
from probe.saving.results import Result
from tests.analyses.circuits.examples import EXAMPLES, PROMPTS, edges, no_gap, reuses


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_every_claim_gives_every_verdict(name, tmp_path):
    results = EXAMPLES[name]()
    claims = {claim.name for claim in analysis_of(name).claims}
    seen = {(finding.name, finding.verdict) for result in results for finding in result.findings()}
    assert seen == {(claim, verdict) for claim in claims for verdict in (HOLDS, FAILS, UNCLEAR)}
    for number, result in enumerate(results):
        folder = result.save(tmp_path / str(number))
        assert Result.load(folder) == result
        for table in result.tables().values():
            cells = [column.cell(row) for row in table.rows.to_dict("records") for column in table.columns]
            assert cells and table.meaning.endswith(".")
        assert result.summary() and all(score.unit and score.sign for score in result.head_scores().values())


def test_without_a_gap_nothing_is_a_percentage():
    found = no_gap()
    assert not found.divides and found.head_scores() == {}
    assert found.tables()["heads"].rows["percent"].isna().all() and found.tables()["tests"].rows["value"].isna().all()
    assert "%" not in found.summary()[1] and "an unknown share" in found.summary()[2]
    results = {
        "search": found,
        "edges": edges(0.95, 0.1, size=20.0, gap=20.0),
        "reuse": replace(reuses()[0], first=found, second=found),
    }
    for result in results.values():
        for plot in result.figures().values():
            words = plot.figure.to_json() + plot.headline
            drawn = re.sub(r"95 %|% of (the )?edges|edges kept, % of all|%: the best", "", words)
            assert not re.search(r"(?<!\\)%(?!\{)", drawn), (plot.headline, re.findall(r".{40}%(?!\{).{20}", drawn))
    heads = results["search"].figures()["heads"]
    assert "changes by" in heads.headline and f"over {PROMPTS} prompts" in heads.reading


def test_a_quotient_has_the_interval_of_the_delta_method():
    numerator, denominator = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([4.0, 4.0, 5.0, 3.0])
    found = quotient(numerator, denominator)
    residual = numerator - 0.5 * denominator  # -1, 0, 0.5, 0.5
    assert found.value == 0.5 and found.n == 4
    assert found.high - found.value == pytest.approx(1.96 * float(residual.std()) / 2 / 4)
    # a numerator in proportion has no error, and a mean near zero cannot divide
    assert quotient(3 * denominator, denominator) == Estimate(3.0, 3.0, 3.0, n=4)
    assert not quotient(numerator, torch.tensor([-1.0, 1.0, -1.0, 1.2])).known
    assert not quotient(numerator[:1], denominator[:1]).known


def test_a_control_spans_its_draws():
    found = of_draws([Estimate(0.1, 0.0, 0.3, n=5), Estimate(0.3, 0.2, 0.4, n=5)])
    assert found == Estimate(pytest.approx(0.2), 0.0, 0.4, n=5) and of_draws([]) is None
    unknown = of_draws([Estimate(0.1, 0.0, 0.3, n=5), Estimate(0.3, n=5)])
    assert unknown is not None and not unknown.known


def test_areas_are_those_of_the_curve():
    draw = torch.Generator().manual_seed(0)
    clean, corrupted = 4 + torch.randn(20, generator=draw), -4 + torch.randn(20, generator=draw)
    shares = torch.tensor([0.1, 0.7, 1.3, 1.0])
    difference = corrupted + shares[:, None] * (clean - corrupted) + torch.randn(4, 20, generator=draw)
    percents = (1.0, 10.0, 50.0, 100.0)
    curve = CircuitCurve(
        percents=percents, sizes=(1, 2, 3, 4), connected=(1, 2, 3, 4), difference=difference,
        random=torch.empty(0, 4, 20), clean=clean, corrupted=corrupted, method="EAP", by="support",
    )  # fmt: skip
    for found, area in ((cpr, curve.cpr), (cmd, curve.cmd)):
        estimate = found(difference, clean, corrupted, percents)
        assert estimate.value == pytest.approx(area, rel=1e-5) and estimate.low < estimate.value < estimate.high


def test_fishers_interval_of_a_correlation():
    found = correlation(0.5, 28)
    assert (
        found is not None
        and found.low == pytest.approx(0.156, abs=1e-3)
        and found.high == pytest.approx(0.736, abs=1e-3)
    )
    assert correlation(0.5, 3) is None and correlation(math.nan, 9) is None and correlation(1.0, 9).low == 1
