"""`probe intervene act` on a tiny model and eight short prompts: what it prints, saves and refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import probe
from probe.analyses.act.result import Calibration
from probe.app import cli
from tests.probe.every_door import tiny


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """A tiny model stands in for the packaged one."""
    model = tiny("llama")
    monkeypatch.setattr(probe, "load", lambda name, **options: model, raising=False)
    monkeypatch.setattr("probe.saving.results.save_pictures", lambda plots, folder: [])  # a browser would draw them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    texts = [("w9 w20 w31 w40", "w6"), ("w8 w7 w50 w11 w12", "w5"), ("w61 w3", "w6"), ("w70 w71", "w5")]
    (folder / "task.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": f"{text} w13 w14", "labels": [" w5", " w6"], "answer": f" {own}", "split": split})
            for split in ("calibration", "test")
            for text, own in texts
        )
    )
    return folder


def typed(folder) -> list[str]:
    small = ["--candidate-layers", "0,1", "--heads", "2", "--draws", "1", "--sweep", "3"]
    return ["intervene", "act", "--task", str(folder / "task.jsonl"), *small, "--out", str(folder / "run")]


def refused(arguments, capsys) -> str:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("probe: "), captured
    return captured.err


def test_json_then_tables_from_the_same_folder(folder, capsys, monkeypatch):
    assert cli.run([*typed(folder), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)  # nothing else on stdout
    found = Calibration.load(folder / "run")
    assert f"run folder: {folder / 'run'}" in captured.err and found.agreement()["heads"] == 3
    assert {row["condition"] for row in content["tables"]["conditions"]} == set(found.conditions["condition"])
    heads = content["tables"]["heads"]
    assert [row["name"] for row in heads] == found.heads["name"].tolist() and len(heads) == 8
    assert content["scores"]["gradient"]["layers"] == [0, 1] and set(content["figures"]) == {"conditions", "filter"}
    assert [each["name"] for each in content["findings"]] == ["more-than-random", "more-than-bias", "filter-agrees"]
    assert "4 calibration, 4 test prompts; 2 of 8 heads, 1 random draws, 3 heads run alone" in captured.err

    monkeypatch.setattr(probe.Model, "logits", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert cli.run([*typed(folder), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {split: line.split() for line in lines for split in ("calibration", "test") if line.startswith(split + " ")
            and "label bias alone" in line}  # fmt: skip
    for split, row in rows.items():
        numbers = [found.value("label bias alone", split, number) for number in ("accuracy", "nll", "auc")]
        assert row[4:] == [f"{number:.3f}" for number in numbers]
    assert len(rows) == 2
    said = lines.index(found.verdict("test"))
    assert lines[said + 1].startswith("gradient filter against 3 heads run alone: Spearman ")
    assert lines[said + 2] == "calibrated: " + " ".join(map(str, sorted(found.chosen)))


def test_dry_run_says_what_would_run_and_writes_nothing(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(probe.Model, "logits", lambda *a, **options: pytest.fail("a dry run read a prompt"))
    arguments = [*typed(folder)[:-1], str(tmp_path / "none"), "--dry-run"]
    assert cli.run(arguments) == 0
    assert "14 units, about " in capsys.readouterr().out
    assert cli.run([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    # 8 prompts in 5 conditions, 4 in 3 runs of single heads, and the backward pass as three
    assert [int(part["part"].split()[0]) for part in content["parts"]] == [40, 12, 12]
    assert content["folder"] == str(tmp_path / "none") and content["units"] == 14
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "rows, said",
    [
        ('{"prompt": "It was"}', "task.jsonl, line 1: expected"),
        ('{"prompt": "a", "labels": [" x", " y"], "answer": " x", "split": "test"}', "expected a split"),
    ],
)
def test_a_bad_task_is_one_line(rows, said, capsys, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(rows)
    assert said in refused([*typed(path.parent)[:-2], "--task", str(path)], capsys)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--heads", "10"], "--heads: expected 1 to 4, half of the candidates, got 10"),
        (["--layers", "40"], "--layers: "),
        (["--candidate-layers", "40"], "--candidate-layers: "),
        (["--heads", "0"], "--heads"),
        (["--beta", "1.5"], "--beta"),
        (["--variant", "other"], "--variant"),
        (["--task", "nowhere.jsonl"], "--task"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(more, said, folder, capsys):
    assert said in refused([*typed(folder), *more], capsys)


def test_other_options_may_not_enter_a_folder(folder, capsys):
    assert cli.run([*typed(folder), "--beta", "0.5"]) == 2
    assert "made with other options" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from probe.app import cli; status = cli.run(['intervene', 'act', '--help']); "
        "sys.exit(status or sorted({'torch', 'transformers', 'pandas', 'plotly', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--sweep" in done.stdout and "label bias fitted" in done.stdout
