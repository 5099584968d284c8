"""`probe circuit`: what it prints, saves and refuses, on the toy and on run folders of the packaged model."""

from __future__ import annotations

import functools
import json
import re

import pytest

import probe
from probe.analyses.circuits import edges, search
from probe.analyses.circuits.pairs_analysis import PairsAnalysis
from probe.analyses.circuits.tasks import NAMES
from probe.app import cli
from probe.app.cli import work
from probe.frame.speed import measure
from probe.patching.nodes import MLP
from probe.saving.results import Result
from tests.analyses.circuits.runs import EDGES, SEARCH, shared_run
from tests.analyses.circuits.toy_task import write_toy_task
from tests.probe.toy_circuit import toy

KEYS = {"settings", "manifest", "findings", "tables", "scores", "figures"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("probe.saving.results.save_pictures", lambda plots, folder: [])


@pytest.fixture
def packaged(llama, monkeypatch):
    """The session's model stands in for a second load of the same one."""
    monkeypatch.setattr(probe, "load", lambda name, **options: llama)


def measured_again(*arguments, **options):
    pytest.fail("the finished run was done again")


def refused(arguments, capsys) -> str:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("probe: "), captured
    return captured.err


def test_a_file_of_pairs_as_json_then_as_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "load", lambda name, **options: model)
    model, file, folder = toy(), write_toy_task(tmp_path / "mine.jsonl"), tmp_path / "run"
    typed = ["circuit", str(file), "--stages", "2", "--draws", "1", "--keep", "3", "--out", str(folder)]
    assert cli.run([*typed, "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)  # nothing else on stdout
    found = Result.load(folder)
    assert content.keys() == KEYS and content["settings"]["keep"] == 3 and "4 pairs of prompts of mine" in captured.err
    assert [row["name"] for row in content["tables"]["heads"]] == found.to_df()["name"].tolist()
    assert set(content["scores"]) == {"logits", "queries"} and content["findings"][0]["name"] == "faithful"
    assert set(content["figures"]) == {"circuit", "heads", "tests"}

    monkeypatch.setattr(PairsAnalysis, "measured", measured_again)
    assert cli.run([*typed, "--quiet", "--top", "1"]) == 0  # --top prints less, and is no setting
    out = capsys.readouterr().out
    assert "L1H0" in out and "faithfulness" in out and found.summary()[1] in out and "more rows: --top" in out
    assert cli.run([*typed, "--keep", "4"]) == 2
    error = capsys.readouterr().err
    assert "made with other options (keep: expected 3, got 4)" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_search_of_the_packaged_model(packaged, llama, tmp_path_factory, capsys, monkeypatch):
    found, folder = shared_run(search, llama, SEARCH, tmp_path_factory)
    monkeypatch.setattr(PairsAnalysis, "measured", measured_again)
    typed = ["circuit", "ioi", "--prompts", "8", "--stages", "2", "--draws", "1", "--batch-size", "8"]
    assert cli.run([*typed, "--out", str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["tables"]["heads"][0]["name"] == found.stage("logits").iloc[0]["name"] == "L23H3"
    assert len(found.stage("logits")) == 270 and found.to_df()["kept"].all()
    assert len(content["scores"]["logits"]["values"]) == 30 and content["findings"][0]["verdict"] == "holds"
    assert cli.run([*typed, "--out", str(folder), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "negative mover" in out and "faithfulness" in out and found.summary()[1] in out


@pytest.mark.slow
def test_edges_of_the_packaged_model(packaged, llama, tmp_path_factory, capsys, monkeypatch):
    found, folder = shared_run(edges, llama, EDGES, tmp_path_factory)
    monkeypatch.setattr(PairsAnalysis, "measured", measured_again)
    typed = ["circuit", "edges", "ioi", "--prompts", "8", "--steps", "2", "--percents", "0.5,2,100", "--draws", "1"]
    typed += ["--exact", "4", "--batch-size", "3", "--out", str(folder)]
    assert cli.run([*typed, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == KEYS and len(content["tables"]["exact"]) == 4 and len(content["tables"]["edges"]) == 100
    assert found.scores.top(1)[0].receiver in ("logits", MLP(0))
    assert cli.run([*typed, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "Ranked by support" in out and "embedding" in out and found.summary()[2] in out


def test_tasks_are_listed_and_a_dry_run_only_says_what_would_run(packaged, llama, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "measure", functools.cache(measure))
    assert cli.run(["circuit", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in re.sub(r"\s+", " ", out) for name in (*NAMES, "edges", "reuse", "repair"))
    assert cli.run(["circuit", "ioi", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: probe circuit ioi [OPTIONS]\n")
    for command in (["ioi"], ["reuse", "ioi", "capitals"], ["repair"], ["edges", "ioi"]):
        assert cli.run(["circuit", *command, "--prompts", "8", "--dry-run", "--out", str(tmp_path / "none")]) == 0
        out = capsys.readouterr().out
        assert str(tmp_path / "none") in out and not (tmp_path / "none").exists()
        assert re.search(r"\n\d+ units, about (\d+ s|\d+ min \d+ s) at this machine's speed now, ", out), out
    assert cli.run(["circuit", "edges", "ioi", "--dry-run", "--json", "--quiet"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["units"] == 2 * 2 + 1 + 2 + 3
    assert 5 < content["seconds"] < 3600 and 1e9 < content["memory"] < 2e10 and content["passes"] > 10
    assert sum(part["seconds"] for part in content["parts"]) == pytest.approx(content["seconds"])


def test_mistakes_are_one_line(packaged, capsys):
    assert "unknown task 'iou' (did you mean ioi?)" in refused(["circuit", "iou"], capsys)
    assert "no option 'shots'" in refused(["circuit", "ioi", "--set", "shots=2"], capsys)
    assert "expected NAME=VALUE, got 'shots'" in refused(["circuit", "ioi", "--set", "shots"], capsys)
    assert "greater-than" in refused(["circuit", "greater-than"], capsys)
    assert "unknown task 'iou' (did you mean ioi?)" in refused(["circuit", "reuse", "iou", "ioi"], capsys)
