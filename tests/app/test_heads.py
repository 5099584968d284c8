"""`probe heads` on the packaged model, with two needles: what it prints, saves, continues and refuses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import probe
from probe.analyses.heads.comparison import Comparison
from probe.analyses.heads.result import Heads
from probe.analyses.heads.retrieval import RetrievalHeads
from probe.app import cli
from probe.saving.results import Result

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
SCORES = ("retrieval", "induction", "copying")
SMALL = ["heads", "--lengths", "300", "--depths", "50", *(f"--kind={kind}" for kind in SCORES)]


@pytest.fixture(autouse=True)
def loaded_once(llama, monkeypatch):
    """The session's model stands in for a second load of the same one; other names and options load as ever."""
    load = probe.load

    def once(name, **options):
        return llama if name == "llama" and not any(options.values()) else load(name, **options)

    monkeypatch.setattr(probe, "load", once, raising=False)
    monkeypatch.setattr("probe.saving.results.save_pictures", lambda plots, folder: [])  # a browser would draw them


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
    assert set(printed) == {"settings", "manifest", "findings", "tables", "scores", "figures"}
    heads = printed["tables"]["heads"]
    assert len(heads) == 270 and {(head["layer"], head["head"]) for head in heads} == set(llama.heads())
    values = [head["retrieval"] for head in heads]
    assert values == sorted(values, reverse=True)
    assert all(head["retrieval_low"] <= head["retrieval"] <= head["retrieval_high"] for head in heads)
    best = heads[0]
    assert (best["layer"], best["head"], best["kv_group"]) == (18, 6, 2) and values[0] >= 0.8
    assert tuple(printed["scores"]) == SCORES
    assert printed["manifest"]["name"] == "llama" and printed["manifest"]["model"].endswith("SmolLM2-135M-Instruct")
    assert printed["manifest"]["passes"] > 0 and list(printed["tables"]) == ["heads"]
    verdicts = {finding["name"]: finding["verdict"] for finding in printed["findings"]}
    assert verdicts["induction"] == "holds" and verdicts["necessary"] == "not applicable"


def test_the_folder_holds_what_was_printed(printed, run):
    found = Result.load(run)
    assert isinstance(found, Heads) and isinstance(Result.load(run / "retrieval"), RetrievalHeads)
    assert found.retrieval is not None and found.validation is None and found.comparison is None
    accuracy = found.retrieval.accuracy()
    assert accuracy["retrieved"] == accuracy["asked"] == 2
    first = printed["tables"]["heads"][0]
    assert float(found.retrieval.score[first["layer"], first["head"]]) == first["retrieval"]
    assert found.retrieval.manifest.fingerprint() == printed["manifest"]["fingerprint"]
    assert {path.name for path in (run / "retrieval" / "figures").glob("*.html")} >= {"heads.html", "curve.html"}
    assert printed["figures"]["retrieval/heads"] == str(run / "retrieval" / "figures" / "heads.html")


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
    assert lines[0].startswith("llama -> SmolLM2-135M-Instruct")
    assert lines[3] == f"run folder: {run}" and "2 needle questions in 300 tokens" in lines[2]
    assert "The model retrieved 2 of 2 needles." in captured.out and "mostly induction heads" in captured.out
    rows = [line.split() for line in lines if line.startswith("L1")]
    assert rows[0][0] == "L18H6" and len(rows) == 3
    assert all(row[0].startswith(("L17", "L18")) for row in rows)
    assert "and 15 more rows: --top 18, or --json" in lines
    pages = [line.split()[1].rstrip(",") for line in lines if line.startswith("figure: ")]
    assert pages == [f"{run}/retrieval/figures/heads.html", f"{run}/catalogue/figures/maps.html"]
    assert all(Path(page).exists() for page in pages)
    assert "KV: the key-value head that it reads" in captured.out


def test_only_json_on_stdout(printed, run, capsys):
    assert cli.run([*SMALL, "--out", str(run), "--json", "--layers", "18"]) == 0
    captured = capsys.readouterr()
    assert {head["layer"] for head in json.loads(captured.out)["tables"]["heads"]} == {18}
    assert captured.err.startswith("llama -> ") and len(captured.err.splitlines()) == 4


def test_other_options_may_not_enter_the_folder(printed, run, capsys):
    status = cli.run([*SMALL, "--out", str(run), "--seed", "1"])
    captured = capsys.readouterr()
    assert status == 2 and "made with other options" in captured.err and "seed: expected 0, got 1" in captured.err


def test_kinds_narrow_the_catalogue(tmp_path, capsys):
    arguments = ["heads", "--kind", "copying", "--out", str(tmp_path), "--json", "--quiet"]
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"copying"}
    assert found["figures"].keys() == {"catalogue/maps"} and not (tmp_path / "retrieval").exists()


def test_own_needles_in_own_text(tmp_path, capsys):
    book = tmp_path / "book.txt"
    sentences = (f"On day {day} the crew sailed {day * 7 % 31} miles and wrote nothing down." for day in range(200))
    book.write_text("\n\n".join(sentences))
    needles = tmp_path / "needles.jsonl"
    fact = {"needle": "The secret word of the ship is lantern.", "question": "What is the secret word of the ship?"}
    needles.write_text(json.dumps(fact | {"answer": "lantern"}) + "\n")
    asked = ["heads", "--lengths", "150", "--depths", "50", "--kind", "retrieval", "--max-new-tokens", "12"]
    arguments = [*asked, "--haystack", str(book), "--needles", str(needles), "--json", "--quiet"]
    assert cli.run([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["haystacks"] == [str(book)]
    found = RetrievalHeads.load(tmp_path / "run" / "retrieval")
    assert found.samples["answer"].tolist() == ["lantern"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["needles"][0][2] == "lantern" and "haystacks" not in config
    book.write_text("Another book. " * 400)
    assert cli.run([*arguments, "--out", str(tmp_path / "run")]) == 2  # the same path, other prose
    assert "haystack_sha256" in capsys.readouterr().err


def test_a_dry_run_estimates_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, "--dry-run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["units"] == 4 and 0.5e9 < estimate["memory"] < 8e9
    needles, others = estimate["parts"]
    count, tokens = re.fullmatch(r"(\d+) needles, (\d+) tokens to read", needles["part"]).groups()
    assert count == "2" and 450 < int(tokens) < 800 and others["part"] == "the other scores"
    assert 0 < needles["seconds"] < estimate["seconds"] < 600
    assert cli.run([*SMALL, "--dry-run"]) == 0
    assert "\n2 needles, " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--layers", "99"], 2, "--layers: llama has layers 0..29, got 99"),
        (["--lengths", "9000"], 2, "--lengths"),
        (["--max-tokens", "200"], 2, "--max-tokens 200 leaves none of --lengths 300"),
        (["--depths", "120"], 2, "--depths: expected 0 to 100, got 120"),
        (["--model", "no-such-folder/"], 1, "no-such-folder"),
        (["--device", "cuda:7"], 1, "no device cuda:7"),
    ],
)
def test_mistakes_are_one_line(arguments, status, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    got, line = mistake([*SMALL, *arguments], capsys)
    assert got == status and words in line
    assert list(tmp_path.iterdir()) == []


def test_comparing_with_nothing_is_one_line(tmp_path, capsys):
    status, line = mistake([*SMALL, "--compare", str(tmp_path)], capsys)
    assert status == 2 and "--compare: expected the folder of a finished run" in line


def test_comparing_a_run_with_itself_measures_nothing_again(printed, run, capsys, monkeypatch):
    monkeypatch.setattr(probe.Model, "recording", None)
    assert cli.run([*SMALL, "--out", str(run), "--quiet", "--compare", str(run)]) == 0
    assert "share 20 of their top 20 heads" in capsys.readouterr().out
    compared = Comparison.load(run / "comparison")
    assert compared.pearson == pytest.approx(1) and len(compared.shared) == 20
    assert (run / "comparison" / "figures" / "comparison.html").exists()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_numbers(printed, run, tmp_path, capsys):
    """Killed in a process of its own after its first needle; continued here, to the numbers of the whole run."""
    broken = tmp_path / "broken"
    units = broken / "units.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "probe", *SMALL, "--out", str(broken)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (not units.exists() or units.read_bytes().count(b"\n") < 1):
        time.sleep(0.02)
    assert process.poll() is None, f"ended before it could be stopped: {process.communicate()}"
    process.kill()
    process.communicate()
    kept = units.read_bytes()
    assert cli.run([*SMALL, "--out", str(broken)]) == 0
    assert "retrieved 2 of 2 needles" in capsys.readouterr().out and units.read_bytes().startswith(kept)
    first, second = Heads.load(run), Heads.load(broken)
    assert first.retrieval is not None and second.retrieval is not None
    assert first.retrieval.differences(second.retrieval) == []
    assert first.catalogue.differences(second.catalogue) == []
    assert first.retrieval.manifest.fingerprint() == second.retrieval.manifest.fingerprint()
