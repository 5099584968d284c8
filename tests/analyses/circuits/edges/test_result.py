"""The edges of IOI on the packaged model, and every number of a run from the functions that it calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from probe.analyses.circuits.edges import result as edge_circuits
from probe.analyses.circuits.edges.result import Edges, Settings
from probe.edges.attribution import eap_ig
from probe.edges.patched import edge_effects
from probe.edges.wiring import Wiring
from probe.errors import UsageError

SMALL = Settings(prompts=8, steps=2, percents=(0.5, 2.0, 100.0), draws=1, exact=4, batch=3)


@pytest.fixture(scope="module")
def found(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    seen: list[tuple[int, int]] = []
    result = edge_circuits.run(
        llama, settings=SMALL, out=folder, progress=lambda done, total: seen.append((done, total))
    )
    return result, folder, seen


def test_scores_and_exact_effects_are_of_half_of_the_prompts(found, llama):
    result, _, _ = found
    pairs = edge_circuits.prompts(llama, SMALL).pairs(llama)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    scored = pairs.take(order[:4].sort().values)
    wiring = Wiring(llama)
    wanted = eap_ig(wiring, scored, steps=2)
    torch.testing.assert_close(result.raw, wanted.raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.standard_error, wanted.standard_error, rtol=1e-3, atol=1e-5)
    assert result.scores.top(4) == wanted.top(4)
    exact = edge_effects(wiring, scored, wanted.top(4))
    assert result.exact["exact"].tolist() == pytest.approx(exact.normalised.tolist(), rel=1e-3, abs=1e-2)
    assert result.exact["sender"].tolist() == [str(edge.sender) for edge in wanted.top(4)]


def test_the_best_edges_keep_the_answer_and_random_ones_do_not(found):
    result, _, _ = found
    curve = result.curve()
    assert curve.sizes == (353, 1413, 70_651) and float(curve.faithfulness[-1]) == pytest.approx(1, abs=1e-4)
    assert float(curve.faithfulness[1]) > 0.5 > 0.1 > abs(float(curve.random_faithfulness[0, 1]))
    assert result.findings[0].startswith("70,651 edges from 301 senders to 481 receivers; scores by EAP-IG (inputs), 2")
    assert f"CMD {curve.cmd:.3f}, random circuits {float(curve.random_cmd.mean()):.3f}" in result.findings[1]
    assert (
        result.curve("support").cpr > curve.random_cpr.mean()
        and f"{result.curve('support').cpr:.3f}" in result.findings[2]
    )


def test_progress_and_a_finished_run(found, llama, monkeypatch):
    result, folder, seen = found
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and {total for _, total in seen} == {len(seen)}
    monkeypatch.setattr(edge_circuits, "eap_ig", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert edge_circuits.run(llama, settings=SMALL, out=folder) == result == Edges.load(folder)
    with pytest.raises(UsageError, match="made with other options"):
        edge_circuits.run(llama, settings=replace(SMALL, steps=3), out=folder)


def test_pictures_name_what_they_show(found):
    result, _, _ = found
    drawn: Any = result.figures()
    assert list(drawn) == ["magnitude", "support", "exact"]
    points = drawn["exact"].figure.data[1]
    assert list(points.y) == result.exact["percent"].tolist() and list(points.x) == result.exact["exact"].tolist()
    assert "correlate at" in drawn["exact"].headline and len(result.to_df()) == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [({"prompts": 3}, "--prompts: expected 4"), ({"method": "x"}, "--method"), ({"steps": 0}, "--steps")],
)
def test_settings_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)
    assert len(Settings(exact=0).percents) == 10
