"""`probe bench` for real, small: what it measures, prints, saves and refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from probe.app import cli
from probe.app.cli.bench import Bytes
from probe.benchmarks.record import Benchmark

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--lengths", "64", "--repeats", "2", "--threads", "1", "--case", "products", "--heads", "4", "--kv-heads", "2"]


@pytest.fixture(scope="module")
def green(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tests") / "test_green.py"
    path.write_text("def test_right():\n    pass\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "bench"


@pytest.fixture(scope="module")
def done(green, folder) -> subprocess.CompletedProcess[str]:
    """The command, run as a user runs it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "probe", "bench", *SMALL, "--tests", str(green), "--out", str(folder), "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_json_holds_every_case_and_every_time(done, folder):
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"settings", "manifest", "findings", "tables", "scores", "figures"}
    found = found["tables"]
    cases = found["cases"]
    assert [case["method"] for case in cases] == ["sdpa", "products"]
    assert all(case["status"] == "ok" and case["rounds"] == 2 and case["length"] == 64 for case in cases)
    assert all(case["ratio"] == pytest.approx(case["seconds"] / cases[0]["seconds"]) for case in cases)
    assert all(case["low"] <= case["seconds"] <= case["high"] for case in cases)
    order = [(time["round"], time["case"]) for time in found["times"]]
    assert order == [(number, case["name"]) for number in (1, 2) for case in cases]
    assert found["checked"][0]["passed"] == 1 and found["checked"][0]["difference"] == {}
    machine = found["machine"][0]
    assert machine["threads"] == 1 and machine["device"] == "CPU" and machine["processor"]
    assert {"torch", "transformers", "transformer-lens", "nnsight"} <= set(machine["versions"])
    assert str(folder) in done.stderr and "triton" in {each["implementation"] for each in found["refused"]}


@pytest.mark.slow
def test_a_run_is_saved_shown_again_and_written_as_a_page(done, folder, tmp_path, capsys, monkeypatch):
    found = json.loads(done.stdout)["tables"]
    saved = Benchmark.load(folder)
    assert list(saved.cases["seconds"]) == [case["seconds"] for case in found["cases"]]
    assert (folder / "figures" / "kernels.html").exists()
    page = tmp_path / "page.md"
    assert cli.run(["bench", *SMALL, "--out", str(folder), "--page", str(page), "--quiet"]) == 0
    out = capsys.readouterr().out
    for case in found["cases"]:
        (line,) = [line for line in out.splitlines() if case["name"] in line]
        assert f"{case['ratio']:.2f}x" in line and f"{case['seconds'] * 1e3:.3g} ms" in line
        cell = f"| {case['name']} | {case['seconds'] * 1e3:.3g} ms ({case['ratio']:.2f}x) |"
        assert cell in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "bench-kernels.html").exists()
    assert saved.manifest.options["lengths"] == [64] and saved.manifest.seed == 0


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_where_it_stood(done, folder, tmp_path, capsys):
    """What is in its folder is not measured again: the times are the same to the last digit."""
    found = json.loads(done.stdout)["tables"]
    copy = shutil.copytree(folder, tmp_path / "cut")
    (copy / "result.json").unlink()
    assert cli.run(["bench", *SMALL, "--out", str(copy), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)["tables"]
    assert again["times"] == found["times"] and again["cases"] == found["cases"]
    assert (copy / "result.json").exists()


@pytest.mark.slow
def test_other_options_need_another_folder(done, folder, capsys):
    assert cli.run(["bench", *SMALL, "--seed", "1", "--out", str(folder)]) == 2
    assert "give another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_is_measured_on_red(tmp_path, capsys):
    red = tmp_path / "test_red.py"
    red.write_text("def test_sums():\n    assert 1 + 1 == 3\n")
    status = cli.run(["bench", *SMALL, "--tests", str(red), "--out", str(tmp_path / "run"), "--json", "--quiet"])
    captured = capsys.readouterr()
    assert status == 1 and captured.out == "" and "test_red.py::test_sums" in captured.err
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "units.jsonl").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--device", "cuda:7"], "--device: expected cpu or a CUDA device that is there, got cuda:7"),
        (["--case", "nothing"], "--case: expected one of"),
        (["--heads", "4", "--kv-heads", "3"], "--heads must be a multiple of --kv-heads"),
        (["--memory-limit", "much"], "expected a size such as 20GB"),
    ],
)
def test_mistakes_are_one_line(options, words, capsys, tmp_path):
    assert cli.run(["bench", *options, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, size", [("20GB", 20 * 10**9), ("500 mb", 5 * 10**8), ("1.5G", 1_500_000_000), ("1000", 1000)]
)
def test_sizes_are_decimal(text, size):
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "20 GiB", "-1GB"])
def test_odd_sizes_are_refused(text):
    with pytest.raises(click.BadParameter, match="expected a size"):
        Bytes().convert(text, None, None)
