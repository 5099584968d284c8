"""`probe circuit` on the packaged model and a few pairs: what it prints, saves and refuses."""

from __future__ import annotations

import json
import re

import pytest

import probe
from probe.analyses.circuits.edges import result as edge_circuits
from probe.analyses.circuits.edges.result import Edges
from probe.analyses.circuits.search.result import Circuit
from probe.app import cli
from probe.patching.nodes import MLP

PAIRS = [
    {
        "clean": f"Then, {io} and {s} went to the {place}. {s} gave a drink to",
        "corrupted": f"Then, {io} and {s} went to the {place}. {io} gave a drink to",
        "good": f" {io}", "bad": f" {s}", "roles": {"IO": [io, 1], "S1": [s, 1], "S2": [s, 2]},
    }
    for io, s, place in (("Mary", "John", "store"), ("Tom", "Sarah", "school"), ("Anna", "Mark", "office"))
]  # fmt: skip


@pytest.fixture(autouse=True)
def loaded_once(llama, monkeypatch):
    """The session's model stands in for a second load of the same one."""
    monkeypatch.setattr(probe, "load", lambda name, **options: llama, raising=False)
    for module in ("circuit_run.save_pictures",):
        monkeypatch.setattr(f"probe.app.cli.{module}", lambda figures, to: list(figures))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("circuit") / "mine.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in PAIRS) + "\n")
    return path


def typed(file) -> list[str]:
    return ["circuit", str(file), "--stages", "1", "--draws", "1", "--top", "3", "--out", str(file.parent / "run")]


def refused(arguments, capsys) -> str:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("probe: "), captured
    return captured.err


def test_a_file_of_pairs_as_json_then_as_tables(file, capsys, monkeypatch):
    assert cli.run([*typed(file), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)  # nothing else on stdout
    found = Circuit.load(file.parent / "run")
    assert content["folder"] == str(file.parent / "run") and len(content["effects"]) == 270
    assert found.stage("logits").iloc[0]["name"] == "L23H3" and found.to_df()["kept"].all() and len(found.to_df()) == 3
    assert content["findings"] == list(found.findings) and "3 pairs of mine" in captured.err

    monkeypatch.setattr(probe.Model, "logits", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert cli.run([*typed(file), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "negative mover" in out and "faithfulness" in out and found.findings[1] in out


def test_tasks_are_listed_and_a_dry_run_only_says_what_would_run(capsys, tmp_path):
    assert cli.run(["circuit", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("ioi", "colored-objects", "greater-than", "reuse", "repair"))
    for command in (["ioi"], ["reuse", "ioi", "capitals"], ["repair"], ["edges", "ioi"]):
        assert cli.run(["circuit", *command, "--prompts", "8", "--dry-run", "--out", str(tmp_path / "none")]) == 0
        out = capsys.readouterr().out
        assert str(tmp_path / "none") in out and not (tmp_path / "none").exists()
        assert re.search(r"\nabout (\d+ s|\d+ min \d+ s) at this machine's speed now, [\d.]+ GB of memory\n", out), out
    assert cli.run(["circuit", "edges", "ioi", "--dry-run", "--json", "--quiet"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["heads"] == 270 and 5 < content["seconds"] < 3600 and 1e9 < content["memory"] < 2e10


def test_edges_as_json_then_as_tables(file, capsys, monkeypatch):
    mine = file.parent / "edges.jsonl"
    mine.write_text("\n".join(json.dumps(pair) for pair in [*PAIRS, PAIRS[0]]) + "\n")
    arguments = ["circuit", "edges", str(mine), "--steps", "1", "--draws", "1", "--exact", "3", "--prompts", "4"]
    arguments += ["--out", str(file.parent / "edges")]
    assert cli.run([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    found = Edges.load(file.parent / "edges")
    assert content["findings"] == list(found.findings) and len(content["exact"]) == 3
    assert found.scores.top(1)[0].receiver in ("logits", MLP(0))

    monkeypatch.setattr(edge_circuits, "eap_ig", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert cli.run([*arguments, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "ranked by support:" in out and "embedding" in out and found.findings[2] in out


def test_mistakes_are_one_line(capsys, file):
    assert "No such command 'iou'" in refused(["circuit", "iou"], capsys)
    assert "no option 'shots'" in refused(["circuit", "ioi", "--set", "shots=2"], capsys)
    assert "expected NAME=VALUE, got 'shots'" in refused(["circuit", "ioi", "--set", "shots"], capsys)
    assert "greater-than" in refused(["circuit", "greater-than"], capsys)
    assert "unknown task 'iou' (did you mean ioi?)" in refused(["circuit", "reuse", "iou", "ioi"], capsys)
    assert cli.run([*typed(file), "--top", "4"]) == 2
    error = capsys.readouterr().err
    assert "made with other options (top: expected 3, got 4)" in error and error.count("\n") == 1
