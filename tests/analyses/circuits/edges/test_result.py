"""The edges of IOI on the packaged model, and every number of a run from the functions that it calls."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.circuits import edges
from probe.analyses.circuits.edges.result import Edges
from probe.analyses.circuits.edges.settings import Settings
from probe.analyses.circuits.tasks.registry import task
from probe.edges.attribution import eap_ig
from probe.edges.curves import PERCENTS, area
from probe.edges.patched import edge_effects
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from tests.analyses.circuits.runs import EDGES, shared_run


@pytest.fixture(scope="module")
def found(llama, tmp_path_factory) -> Edges:
    return shared_run(edges, llama, EDGES, tmp_path_factory)[0]


@pytest.mark.slow
def test_scores_and_exact_effects_are_of_half_of_the_prompts(found, llama):
    pairs = task(llama, "ioi", prompts=8).pairs(llama)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    scored = pairs.take(order[:4].sort().values)
    wiring = Wiring(llama)
    wanted = eap_ig(wiring, scored, steps=2)
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.standard_error, wanted.standard_error, rtol=1e-3, atol=1e-5)
    assert found.scores.top(4) == wanted.top(4)
    exact = edge_effects(wiring, scored, wanted.top(4))
    assert found.exact["exact"].tolist() == pytest.approx(exact.normalised.tolist(), rel=1e-3, abs=1e-2)
    assert found.exact["sender"].tolist() == [str(edge.sender) for edge in wanted.top(4)]


@pytest.mark.slow
def test_the_best_edges_keep_the_answer_and_random_ones_do_not(found):
    curve = found.curve()
    assert curve.sizes == (353, 1413, 70_651) and float(curve.faithfulness[-1]) == pytest.approx(1, abs=1e-4)
    assert float(curve.faithfulness[1]) > 0.5 > 0.1 > abs(float(curve.random_faithfulness[0, 1]))
    assert found.summary()[0].startswith("70,651 edges from 301 senders to 481 receivers; scores by EAP-IG (inputs), 2")
    random = float(area((1 - curve.random_faithfulness).abs(), curve.percents).mean())
    assert f"CMD is {curve.cmd:.3f}, and random circuits have {random:.3f}" in found.summary()[1]
    support = found.curve("support").cpr
    assert support > area(curve.random_faithfulness, curve.percents).mean() and f"{support:.3f}" in found.summary()[2]


@pytest.mark.slow
def test_the_claims_have_the_areas_of_the_curves(found):
    cmd, cpr, agreement = found.findings()
    curve = found.curve()
    random = float(area((1 - curve.random_faithfulness).abs(), curve.percents).mean())
    assert cmd.value == pytest.approx(curve.cmd) and cmd.control_value == pytest.approx(random)
    assert cpr.value == pytest.approx(found.curve("support").cpr) and cpr.low < cpr.value < cpr.high
    assert agreement.value == found.agreement and agreement.n == 4 and cmd.n == 4


@pytest.mark.slow
def test_pictures_name_what_they_show(found):
    drawn = found.figures()
    assert list(drawn) == ["magnitude", "support", "exact"]
    points = drawn["exact"].figure.data[1]
    assert list(points.y) == found.exact["percent"].tolist() and list(points.x) == found.exact["exact"].tolist()
    assert "correlate at" in drawn["exact"].headline and len(found.to_df()) == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [({"prompts": 3}, "--prompts: expected at least 4"), ({"method": "x"}, "--method"), ({"steps": 0}, "--steps")],
)
def test_settings_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)
    assert len(Settings(exact=0).percents) == 10 and Settings().percents == PERCENTS
