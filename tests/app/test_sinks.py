"""`probe sinks` on the packaged model and one short text: what it prints, saves and refuses."""

from __future__ import annotations

import json

import pytest

import probe
from probe.analyses.sinks.result import Sinks
from probe.app import cli

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def loaded_once(llama, monkeypatch):
    """The session's model stands in for a second load of the same one."""
    monkeypatch.setattr(probe, "load", lambda name, **options: llama, raising=False)
    monkeypatch.setattr("probe.saving.results.save_pictures", lambda figures, folder: [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "one.txt").write_text("The ferry leaves at noon, and the last bus waits for it at the old pier.\n" * 2)
    return folder


def typed(folder) -> list[str]:
    return ["sinks", "--prompt-file", str(folder / "one.txt"), "--min-rows", "8", "--out", str(folder / "run")]


def test_json_then_tables_from_the_same_folder(folder, capsys):
    assert cli.run([*typed(folder), "--json", "--quiet", "--layers", "12-13"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert set(content) == {"settings", "manifest", "findings", "tables", "scores", "figures"}
    heads = content["tables"]["heads"]
    assert {head["layer"] for head in heads} == {12, 13} and len(heads) == 18
    assert len(content["scores"]["first_mass"]["values"]) == 30
    conditions = {row["condition"] for row in content["tables"]["conditions"]}
    assert "mean" not in conditions and {"none", "zero", "control dim", "random dim"} <= conditions
    found = Sinks.load(folder / "run")
    assert found.dims[0] == 507 and len(found.by_layer()) == 30
    assert {each["verdict"] for each in content["findings"]} == {"cannot tell", "not applicable"}  # one text only
    assert found.manifest.fingerprint() == content["manifest"]["fingerprint"]
    assert captured.err.splitlines()[3] == f"run folder: {folder / 'run'}"

    assert cli.run([*typed(folder), "--layers", "11-12", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("llama -> ")
    layers = lines[lines.index("Layers") :][2:4]
    assert [line.split()[0] for line in layers] == ["11", "12"]
    assert any(line.split()[:3] == ["507", "11", "mlp"] for line in lines)
    (test,) = (line for line in lines if line.startswith("Setting dimension 507 of the first token to zero"))
    assert "; setting it to its mean over other texts needs several texts; " in test
    assert not any("nan" in line.split() or "n/a" in line for line in lines)
    assert lines[-1] == f"figure: {folder}/run/figures/sinks.html, and beside it profile, tokens, causes"


def test_dry_run_measures_nothing(folder, capsys, tmp_path):
    arguments = ["sinks", "--dry-run", "--json", "--quiet", "--max-tokens", "50", "--out", str(tmp_path / "none")]
    assert cli.run(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    once, more = content["parts"]
    assert once["part"].startswith("1 pass over 200 tokens") and more["part"].startswith("9 passes over 200 tokens")
    assert content["units"] == 8 and 0 < content["seconds"] < 600
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--layers", "30"], "--layers: llama has layers 0..29, got 30"),
        (["--rule", "magic"], "'--rule'"),
        (["--threshold", "0"], "--threshold: expected a number above 0, got 0"),
        (["--prompt-file", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert cli.run(["sinks", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""
