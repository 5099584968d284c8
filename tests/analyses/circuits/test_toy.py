"""Every circuit analysis on the toy, whose circuit is known: what it says, and that a killed run goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probe import Head
from probe.analyses.circuits import edges, repair, reuse, search
from probe.analyses.circuits.pairs_analysis import PairsAnalysis
from probe.errors import ProbeError, UsageError
from probe.saving.results import Result
from tests.analyses.circuits.toy_task import write_toy_task
from tests.probe.toy_circuit import toy


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def model():
    return toy()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    return str(write_toy_task(tmp_path_factory.mktemp("toy") / "toy.jsonl"))


def test_the_search_traces_the_toy_back_from_its_logits(model, file):
    found = search.run(model, task=file, draws=2, batch_size=3)
    logits, queries = found.stage("logits"), found.stage("queries")
    assert logits["name"].tolist()[:2] == ["L1H0", "L1H1"] and logits["percent"].tolist()[:2] == pytest.approx([80, 20])
    assert logits["role"].tolist()[:2] == ["mover", "negative mover"]
    assert found.receivers["queries"] == ["L1Q0", "L1Q1"] and queries.iloc[0]["name"] == "L0H0"
    assert queries.iloc[0]["percent"] == pytest.approx(80)
    assert found.heads() == [Head(0, 0), Head(1, 0), Head(1, 1)]
    assert found.gap == pytest.approx(-5) and found.gap_error == pytest.approx(0, abs=1e-6)
    assert found.value("faithfulness", "circuit") == pytest.approx(1)
    assert found.value("minimality", "L1H0") == pytest.approx(0.8)
    # (1.0 without 1.1) + (1.1 without 1.0): each loses its share, and 0.1 writes nothing outside
    assert found.value("completeness", "without logits") == pytest.approx(0, abs=1e-6)
    score = found.head_scores()["logits"]
    assert score.values[1].tolist() == pytest.approx([80, 20]) and score.unit == "percent of the gap"
    assert "L1H0 (role: mover)" in found.summary()[1] and "+80.0 ± 0.0 %" in found.summary()[1]


def test_edges_of_the_toy(model, file):
    found = edges.run(model, task=file, steps=50, percents=(10, 100), draws=1, exact=4)
    assert float(found.curve().faithfulness[-1]) == pytest.approx(1, abs=1e-5)
    exact = found.exact.set_index(["sender", "receiver"])["exact"]
    assert exact["L1H0", "logits"] == pytest.approx(80, abs=0.01)
    out = found.head_scores()["edges out of heads"]
    assert out.values.shape == (2, 2) and float(out.values[1, 0]) == pytest.approx(80, abs=0.1)
    assert float(out.values[0, 1]) == 0


def test_a_task_shares_all_with_itself(model, file):
    found = reuse.run(model, first=file, second=file, control=file, keep=2, batch_size=3)
    assert found.overlaps["shared"].tolist() == [2] * 6 and found.first == found.second == found.again
    assert {finding.verdict for finding in found.findings()[:1]} == {"does not hold"}  # no more than with the control
    assert set(found.head_scores()) == {
        f"{run}: {stage}" for run in reuse.settings.RUNS for stage in ("logits", "queries")
    }


def test_a_repair_forces_the_negative_mover(model, file):
    found = repair.run(model, source=file, target=file, draws=1)
    assert found.heads == (Head(1, 1),) and found.source == found.target == "toy" and found.chance == 0.5
    assert found.conditions["condition"].tolist() == [
        "no heads", "wrong answers", "right answer", "random tokens", "random heads"
    ]  # fmt: skip
    assert found.value("no heads") == found.value("wrong answers") == 1 and found.accuracy("no heads").n == 4
    with pytest.raises(ProbeError, match="demotes it by 30 % of the gap, so there is nothing to repair with"):
        repair.run(model, source=file, target=file, least=30.0)


@pytest.mark.parametrize(
    ("package", "options"),
    [
        (search, {"draws": 1, "batch_size": 3}),
        (edges, {"draws": 1, "exact": 2, "steps": 1, "percents": (10, 100), "batch_size": 1}),
        (reuse, {"keep": 2, "batch_size": 3}),
        (repair, {"draws": 1}),
    ],
    ids=["search", "edges", "reuse", "repair"],
)
def test_a_killed_run_goes_on_and_a_finished_one_is_read(package, options, model, file, tmp_path, monkeypatch):
    names = {search: ("task",), edges: ("task",), reuse: ("first", "second", "control"), repair: ("source", "target")}
    options = options | dict.fromkeys(names[package], file)
    seen: list[tuple[int, int]] = []
    whole = package.run(model, out=tmp_path / "whole", progress=lambda *done: seen.append(done), **options)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert len({total for _, total in seen}) == 1 and seen[-1][0] <= seen[-1][1]

    def kill(done: int, total: int) -> None:
        if done in (3, 5):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            package.run(model, out=tmp_path / "killed", progress=kill, **options)
    again = package.run(model, out=tmp_path / "killed", **options)
    assert again == whole == Result.load(tmp_path / "killed")
    assert again.manifest.prompts == whole.manifest.prompts and whole.manifest.passes > 0
    assert whole.manifest.bos is False

    monkeypatch.setattr(PairsAnalysis, "measured", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert package.run(model, out=tmp_path / "whole", **options) == whole
    with pytest.raises(UsageError, match="made with other options"):
        package.run(model, out=tmp_path / "whole", **options | {"seed": 1})


def test_knock_outs_are_added_to_a_run_without_them(model, file, tmp_path):
    options = {"task": file, "draws": 1}
    plain = search.run(model, out=tmp_path, no_tests=True, **options)
    assert plain.tests.empty and list(plain.figures()) == ["circuit", "heads"]
    assert plain.findings()[0].verdict == "not applicable"
    assert search.run(model, out=tmp_path, **options) == search.run(model, **options)


def test_a_task_made_in_python_replaces_the_name(model, file, tmp_path):
    from probe.analyses.circuits.tasks.registry import task

    made = task(model, file)
    settings = search.Settings(given_task=made, stages=1, no_tests=True)
    found = search.run(model, settings, out=tmp_path)
    assert found.task == "toy" and torch.equal(found.percent(), search.run(model, settings, task=file).percent())
    with pytest.raises(UsageError, match="made with other options"):  # its pairs decide the folder
        search.run(model, replace(settings, given_task=replace(made, prompts=made.prompts[:2])), out=tmp_path)
