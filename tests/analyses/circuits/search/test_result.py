"""The search of IOI's circuit on the packaged model, eight pairs, and what is made of its numbers."""

from __future__ import annotations

import pytest

from probe.analyses.circuits import search
from probe.analyses.circuits.search.result import Circuit
from probe.analyses.circuits.search.settings import Settings
from probe.errors import UsageError
from tests.analyses.circuits.runs import SEARCH, shared_run


@pytest.fixture(scope="module")
def found(llama, tmp_path_factory) -> Circuit:
    return shared_run(search, llama, SEARCH, tmp_path_factory)[0]


@pytest.mark.slow
def test_the_negative_mover_and_the_inhibition_head_are_found(found):
    first = found.stage("logits").iloc[0]
    assert first["name"] == "L23H3" and first["role"] == "negative mover" and first["percent"] > 30
    assert {"L23H0", "L23H1", "L23H2", "L23H7"} <= set(found.stage("logits").query("role == 'mover'")["name"])
    assert found.stage("queries").iloc[0]["name"] == "L20H0"
    assert "L23Q3" in found.receivers["queries"] and found.receivers["logits"] == ["logits"]
    # heads that no receiver follows have no path
    assert (found.stage("queries").query("layer >= 23")["percent"] == 0).all()


@pytest.mark.slow
def test_the_circuit_keeps_more_than_random_heads_do(found):
    assert found.value("faithfulness", "whole model") == 1 and found.value("faithfulness", "nothing") == 0
    assert found.value("faithfulness", "circuit") > 0.2 > abs(found.value("faithfulness", "random"))
    assert found.value("minimality", "L23H3") > 0.2
    whole, corrupted = found.tests.iloc[0]["ld"], found.tests.iloc[0]["ld"] + found.gap
    assert whole == pytest.approx(found.behaviour["ld"], abs=1e-3)
    assert found.percent().sum() == pytest.approx(98, abs=6)  # MLPs recomputed: direct paths make up nearly all
    assert corrupted < 0 and f"LD is {whole:.2f} logits, and {corrupted:.2f} on the corrupted" in found.summary()[0]
    assert found.summary()[1].startswith("On its direct path to the logits L23H3")


@pytest.mark.slow
def test_the_claim_has_its_intervals(found):
    finding = found.findings()[0]
    assert finding.verdict == "holds" and finding.n == 8 and finding.seed == 0
    assert finding.value == pytest.approx(found.value("faithfulness", "circuit"))
    assert finding.low < finding.value < finding.high
    assert finding.control_value == pytest.approx(found.value("faithfulness", "random"))
    score = found.head_scores()["logits"]
    assert bool((score.low <= score.values).all())
    assert float(score.values[23, 3]) == pytest.approx(found.stage("logits")["percent"][0])


@pytest.mark.slow
def test_pictures_name_what_they_show(found):
    drawn = found.figures()
    assert list(drawn) == ["circuit", "heads", "tests"] and "L23H3" in drawn["heads"].headline
    texts = [text for trace in drawn["circuit"].figure.data if trace.text is not None for text in trace.text]
    assert sorted(texts) == sorted(found.to_df()["name"])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"stages": 5}, "--stages: expected 1 to 4, got 5"), ({"fill": "x"}, "--fill"), ({"keep": 0}, "--keep")],
)
def test_settings_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)
