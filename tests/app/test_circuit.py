"""`probe circuit` on the packaged model and a few pairs: what it prints, saves and refuses."""

from __future__ import annotations

import json

import pytest

import probe
from probe.analyses.circuits import Circuit
from probe.app import cli

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
    for command in (["ioi"], ["reuse", "ioi", "capitals"], ["repair"]):
        assert cli.run(["circuit", *command, "--dry-run", "--out", str(tmp_path / "none")]) == 0
        out = capsys.readouterr().out
        assert str(tmp_path / "none") in out and not (tmp_path / "none").exists()


def test_mistakes_are_one_line(capsys, file):
    assert "No such command 'iou'" in refused(["circuit", "iou"], capsys)
    assert "no option 'shots'" in refused(["circuit", "ioi", "--set", "shots=2"], capsys)
    assert "expected NAME=VALUE, got 'shots'" in refused(["circuit", "ioi", "--set", "shots"], capsys)
    assert "greater-than" in refused(["circuit", "greater-than"], capsys)
    assert "unknown task 'iou' (did you mean ioi?)" in refused(["circuit", "reuse", "iou", "ioi"], capsys)
    assert cli.run([*typed(file), "--top", "4"]) == 2
    error = capsys.readouterr().err
    assert "made with other options (top: expected 3, got 4)" in error and error.count("\n") == 1
