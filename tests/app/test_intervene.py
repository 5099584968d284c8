"""`probe intervene act` on the packaged model and eight short prompts: what it prints, saves and refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import probe
from probe.analyses.act.result import Calibration
from probe.app import cli


@pytest.fixture(autouse=True)
def loaded_once(llama, monkeypatch):
    """The session's model stands in for a second load of the same one."""
    monkeypatch.setattr(probe, "load", lambda name, **options: llama, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    texts = [("I loved every minute", "good"), ("I want my money back", "bad"), ("So kind", "good"), ("So rude", "bad")]
    (folder / "task.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": f"{text}. It was", "labels": [" bad", " good"], "answer": f" {own}", "split": split})
            for split in ("calibration", "test")
            for text, own in texts
        )
    )
    return folder


def typed(folder) -> list[str]:
    small = ["--layers", "12-13", "--heads", "2", "--draws", "1", "--sweep", "3"]
    return ["intervene", "act", "--task", str(folder / "task.jsonl"), *small, "--out", str(folder / "run")]


def refused(arguments, capsys) -> str:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("probe: "), captured
    return captured.err


def test_json_then_tables_from_the_same_folder(folder, capsys, monkeypatch):
    monkeypatch.setattr("probe.app.cli.act_run.save_pictures", lambda figures, to: list(figures))
    assert cli.run([*typed(folder), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)  # nothing else on stdout
    found = Calibration.load(folder / "run")
    assert content["folder"] == str(folder / "run") and content["agreement"]["heads"] == 3
    assert {row["condition"] for row in content["conditions"]} == set(found.conditions["condition"])
    assert [row["name"] for row in content["heads"]] == found.heads["name"].tolist() and len(content["heads"]) == 18
    assert "4 calibration, 4 test prompts; 2 of 18 heads, 1 random draws, 3 heads run alone" in captured.err

    monkeypatch.setattr(probe.Model, "logits", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert cli.run([*typed(folder), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"calibration", "test"} <= {line.strip() for line in lines}
    rows = [line.split() for line in lines if line.startswith("label bias alone")]
    numbers = [found.value("label bias alone", "test", number) for number in ("accuracy", "nll", "auc")]
    assert rows[1][3:] == [f"{number:.3f}" for number in numbers]
    assert found.verdict("test") in lines
    assert lines[-1] == "calibrated: " + " ".join(map(str, sorted(found.chosen)))
    assert lines[-2].startswith("gradient filter against 3 heads run alone: Spearman ")


def test_dry_run_says_what_would_run_and_writes_nothing(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(probe.Model, "logits", lambda *a, **options: pytest.fail("a dry run read a prompt"))
    arguments = [*typed(folder)[:-1], str(tmp_path / "none"), "--dry-run"]
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    # 8 prompts in 5 conditions, 4 in 3 runs of single heads, and the backward pass as three
    assert out[-1] == "about 64 prompts to read"
    assert cli.run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "prompts": 64, "folder": str(tmp_path / "none"), "splits": {"calibration": 4, "test": 4},
    }  # fmt: skip
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
    assert said in refused(["intervene", "act", "--task", str(path)], capsys)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--heads", "10"], "--heads: expected 1 to 9, half of the candidates, got 10"),
        (["--layers", "40"], "--layers: "),
        (["--heads", "0"], "--heads"),
        (["--beta", "1.5"], "--beta"),
        (["--preset", "other"], "--preset"),
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
