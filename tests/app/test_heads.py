"""`probe heads` on the packaged model, with two needles: what it prints, saves, continues and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import probe
from probe.analyses.heads.catalogue import HeadCatalogue
from probe.analyses.heads.retrieval import RetrievalHeads
from probe.app import cli
from probe.saving.results import Result

ROOT = Path(__file__).parent.parent.parent
SMALL = ["heads", "--lengths", "300", "--depths", "50"]


@pytest.fixture(autouse=True)
def loaded_once(llama, monkeypatch):
    """The session's model stands in for a second load of the same one; other names and options load as ever."""
    load = probe.load

    def once(name, **options):
        return llama if name == "llama" and not any(options.values()) else load(name, **options)

    monkeypatch.setattr(probe, "load", once, raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "first"


@pytest.fixture
def printed(run, loaded_once, capsys) -> dict:
    """What --json prints for the small run; measured by the first test that asks, read from the folder later."""
    assert cli.run([*SMALL, "--out", str(run), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def mistake(arguments, capsys) -> tuple[int, str]:
    status = cli.run(arguments)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("probe: "), captured
    return status, captured.err


def test_json_holds_every_head_best_first(printed, llama):
    heads = printed["heads"]
    assert len(heads) == 270 and {(head["layer"], head["head"]) for head in heads} == set(llama.heads())
    scores = [head["scores"]["retrieval"] for head in heads]
    values = [score["value"] for score in scores]
    assert values == sorted(values, reverse=True)
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores)
    best = heads[0]
    assert (best["layer"], best["head"], best["kv_group"]) == (18, 6, 2) and values[0] >= 0.8
    assert set(best["scores"]) == {"retrieval", "induction", "previous_token", "duplicate_token", "copying", "sink"}
    assert printed["accuracy"]["retrieved"] == printed["accuracy"]["asked"] == 2
    assert printed["model"] == "llama" and printed["manifest"]["model"].endswith("SmolLM2-135M-Instruct")
    assert printed["validation"] is None
    assert any("mostly induction heads" in finding for finding in printed["findings"])


def test_the_folder_holds_what_was_printed(printed, run):
    retrieval, table = Result.load(run / "retrieval"), Result.load(run / "catalogue")
    assert isinstance(retrieval, RetrievalHeads) and isinstance(table, HeadCatalogue)
    first = printed["heads"][0]
    assert float(retrieval.score[first["layer"], first["head"]]) == first["scores"]["retrieval"]["value"]
    assert retrieval.manifest.fingerprint() == printed["manifest"]["fingerprint"]
    assert {path.name for path in (run / "retrieval" / "figures").glob("*.html")} >= {"heads.html", "curve.html"}


def test_the_same_command_shows_the_run_without_running_it(printed, run, capsys, monkeypatch):
    def runs_again(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(probe.Model, "greedy", runs_again)
    monkeypatch.setattr(probe.Model, "recording", runs_again)
    assert cli.run([*SMALL, "--out", str(run), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == printed


def test_people_see_model_folder_table_and_figures(printed, run, capsys):
    assert cli.run([*SMALL, "--out", str(run), "--top", "3", "--layers", "17-18"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("llama -> SmolLM2-135M-Instruct") and lines[2] == f"run folder: {run}"
    assert "The model retrieved 2 of 2 needles." in captured.out
    rows = [line.split() for line in lines if line.startswith("L1")]
    assert rows[0][0] == "L18H6" and len(rows) == 3
    assert all(row[0].startswith(("L17", "L18")) for row in rows)
    assert "and 15 more heads: --top 18, or --json" in lines
    pages = [line.split()[1].rstrip(",") for line in lines if line.startswith("figure: ")]
    assert pages == [f"{run}/retrieval/figures/heads.html", f"{run}/catalogue/figures/maps.html"]
    assert all(Path(page).exists() for page in pages)
    assert captured.err == ""


def test_only_json_on_stdout(printed, run, capsys):
    assert cli.run([*SMALL, "--out", str(run), "--json", "--layers", "18"]) == 0
    captured = capsys.readouterr()
    assert {head["layer"] for head in json.loads(captured.out)["heads"]} == {18}
    assert captured.err.startswith("llama -> ") and len(captured.err.splitlines()) == 3


def test_comparing_a_run_with_itself(printed, run, capsys):
    assert cli.run([*SMALL, "--out", str(run), "--json", "--quiet", "--compare", str(run)]) == 0
    compared = json.loads(capsys.readouterr().out)["comparison"]
    assert compared["pearson"] == pytest.approx(1) and len(compared["shared"]) == 20
    assert (run / "comparison" / "figures" / "comparison.html").exists()


def test_other_options_may_not_enter_the_folder(printed, run, capsys):
    status = cli.run([*SMALL, "--out", str(run), "--seed", "1"])
    captured = capsys.readouterr()
    assert status == 2 and "made with other options" in captured.err and "seed: expected 0, got 1" in captured.err


def test_kinds_narrow_the_catalogue(tmp_path, capsys):
    arguments = ["heads", "--kind", "sink", "--kind", "previous-token", "--out", str(tmp_path), "--json", "--quiet"]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(set(head["scores"]) == {"previous_token", "sink"} for head in found["heads"])
    assert found["accuracy"] is None and not (tmp_path / "retrieval").exists()


def test_own_needles_in_own_text(tmp_path, capsys):
    book = tmp_path / "book.txt"
    sentences = (f"On day {day} the crew sailed {day * 7 % 31} miles and wrote nothing down." for day in range(200))
    book.write_text("\n\n".join(sentences))
    needles = tmp_path / "needles.jsonl"
    fact = {"needle": "The secret word of the ship is lantern.", "question": "What is the secret word of the ship?"}
    needles.write_text(json.dumps(fact | {"answer": "lantern"}) + "\n")
    arguments = [*SMALL, "--haystack", str(book), "--needles", str(needles), "--kind", "retrieval", "--json", "--quiet"]
    assert cli.run([*arguments, "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["asked"] == 1 and found["manifest"]["options"]["haystack"] == "book.txt"
    assert found["manifest"]["options"]["needles"][0][2] == "lantern"


def test_a_dry_run_estimates_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, "--dry-run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["needles"] == 2 and 450 < estimate["tokens"] < 800
    assert 0 < estimate["needle_seconds"] < estimate["seconds"] < 600 and estimate["validation_seconds"] == 0
    assert 0.5e9 < estimate["memory"] < 8e9
    assert cli.run([*SMALL, "--dry-run"]) == 0
    assert "\n2 needles, " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--layers", "99"], 2, "--layers: llama has layers 0..29, got 99"),
        (["--lengths", "9000"], 2, "--lengths"),
        (["--max-tokens", "200"], 2, "--max-tokens 200 leaves none of --lengths 300"),
        (["--depths", "120"], 2, "--depths"),
        (["--model", "no-such-folder/"], 1, "no-such-folder"),
        (["--device", "cuda:7"], 1, "got cuda:7"),
    ],
)
def test_mistakes_are_one_line(arguments, status, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    got, line = mistake([*SMALL, *arguments], capsys)
    assert got == status and words in line
    assert list(tmp_path.iterdir()) == []


def test_comparing_with_nothing_is_one_line(tmp_path, capsys):
    status, line = mistake([*SMALL, "--compare", str(tmp_path)], capsys)
    assert status == 2 and "--compare: expected a finished run" in line


def start(folder: Path) -> subprocess.Popen[str]:
    """Six needles in a process of its own."""
    arguments = ["heads", "--lengths", "300", "--depths", "10,50,90", "--kind", "retrieval", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "probe", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_samples(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    path = folder / "retrieval" / "samples.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.02)
    assert process.poll() is None, f"ended before it could be stopped: {process.communicate()}"


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_numbers(tmp_path):
    whole = start(tmp_path / "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    for how, status, count in ((signal.SIGKILL, -9, 1), (signal.SIGINT, 130, 3)):
        process = start(tmp_path / "broken")
        wait_for_samples(tmp_path / "broken", process, count)
        process.send_signal(how)
        _, errors = process.communicate()
        assert process.returncode == status
        if how == signal.SIGINT:
            assert errors.splitlines()[-1].endswith(f"repeat the command to continue from {tmp_path / 'broken'}")
    kept = (tmp_path / "broken" / "retrieval" / "samples.jsonl").read_bytes()
    last = start(tmp_path / "broken")
    output, errors = last.communicate()
    assert last.returncode == 0 and "retrieved 6 of 6 needles" in output, errors
    assert (tmp_path / "broken" / "retrieval" / "samples.jsonl").read_bytes().startswith(kept)
    first, second = (RetrievalHeads.load(tmp_path / name / "retrieval") for name in ("whole", "broken"))
    assert first.differences(second) == []
    assert first.manifest.fingerprint() == second.manifest.fingerprint()
