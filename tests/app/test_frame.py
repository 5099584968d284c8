"""The frame of commands, on an analysis of forty lines: everything but these lines comes from the frame."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import probe
import probe.analyses
from probe.app import cli
from probe.saving.results import Result
from probe.saving.runs import read_prompts
from tests.app.toy_parts import ANALYSIS, SETTINGS

ROOT = Path(__file__).parents[2]
MAIN = """
import sys
sys.path.insert(0, {folder!r})
import probe.analyses
probe.analyses.TABLE["toy"] = "toy.analysis:Toy"
from probe.app.cli import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the toy's package in it."""
    folder = tmp_path_factory.mktemp("user")
    package = folder / "toy"
    package.mkdir()
    (package / "settings.py").write_text(SETTINGS)
    (package / "analysis.py").write_text(ANALYSIS)
    return folder


@pytest.fixture
def toy(folder, llama, monkeypatch, capsys):
    """Run the command line in this process, with the toy in the table and the session's model."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setitem(probe.analyses.TABLE, "toy", "toy.analysis:Toy")
    monkeypatch.setattr(probe, "load", lambda name, **options: llama, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.run(["toy", *arguments])
        return status, *capsys.readouterr()

    return call


def test_forty_lines_are_a_whole_analysis():
    lines = [line for text in (SETTINGS, ANALYSIS) for line in text.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith('"""')]) <= 40


def test_help_says_what_the_settings_say(toy):
    status, out, _ = toy("--help")
    assert status == 0
    text = " ".join(out.split())
    assert "How sharp is the attention of each head?" in text
    assert "Prompts to read (default: 3)" in text
    for option in ("--model", "--out", "--preset", "--top", "--layers", "--dry-run", "--json", "--quiet", "--seed"):
        assert option in text


def test_a_dry_run_measures_nothing(toy, folder):
    status, out, _ = toy("--dry-run", "--out", "dry")
    assert status == 0 and "3 units" in out
    assert not (folder / "dry").exists()


def test_a_wrong_setting_is_one_line_and_status_2(toy):
    for arguments, message in (
        (("--prompts", "0"), "probe: --prompts: expected at least 1, got 0\n"),
        (("--preset", "slow"), "probe: Invalid value for '--preset'"),
        (("--layers", "99"), "probe: --layers: llama has layers 0..29, got 99\n"),
    ):
        status, _, err = toy(*arguments)
        assert status == 2 and err.startswith(message) and err.count("\n") == 1


@pytest.mark.slow
def test_a_killed_run_continues_and_gives_the_numbers_of_a_whole_one(toy, folder):
    status, out, err = toy("--out", "whole")
    assert status == 0, err
    assert "Claims that this run tests:" in out and "holds: Heads look at one key" in out

    command = [sys.executable, "-c", MAIN.format(folder=str(folder)), "toy", "--out", "killed", "--pause", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines = folder / "killed" / "units.jsonl"
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE) as process:
        while not lines.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    kept = lines.read_bytes()
    assert 1 <= kept.count(b"\n") < 3

    status, out, err = toy("--out", "killed", "--pause", "1", "--json")
    assert status == 0, err
    assert lines.read_bytes().startswith(kept) and lines.read_bytes().count(b"\n") == 3
    content = json.loads(out)
    assert content.keys() == {"settings", "manifest", "findings", "tables", "scores", "figures"}
    assert content["settings"] == {"seed": 0, "prompts": 3, "pause": 1.0}
    assert content["findings"][0]["verdict"] == "holds"
    assert content["scores"]["sharp"]["unit"] == "share" and len(content["scores"]["sharp"]["values"]) == 30
    assert Path(content["figures"]["layers"]).exists()
    assert content["manifest"]["passes"] > 0 and content["manifest"]["outside"] > 0
    assert [len(prompt["ids"]) for prompt in read_prompts(folder / "killed")] == [8, 8, 8]

    status, _, err = toy("--out", "killed", "--prompts", "2")
    assert status == 2 and "prompts: expected 3, got 2" in err

    run = probe.open(folder / "killed")
    assert list(run) == ["toy"] and run.settings["prompts"] == 3 and len(run.prompts()) == 3
    assert run.result == Result.load(folder / "whole")
    assert "figures layers" in repr(run)
