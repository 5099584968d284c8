"""The loop: stages, resuming, settings that add units, what is refused, workspaces, prompts, passes, nested results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.frame.analysis import Facts, Need, Unit
from probe.frame.run import identity
from probe.frame.speed import measure, operations, plain_seconds
from probe.saving.results import Result
from tests.probe.every_door import tiny
from tests.probe.frame.tiny import Inner, Tiny, TinyAnalysis, TinySettings, run


@pytest.fixture(scope="module")
def model() -> probe.Model:
    return tiny("llama")


@pytest.fixture(autouse=True)
def ran(monkeypatch) -> list[str]:
    """The names of the units that were measured in the test."""
    names: list[str] = []
    monkeypatch.setattr(TinyAnalysis, "ran", names)
    return names


def lines(folder: Path) -> list[bytes]:
    return (folder / "units.jsonl").read_bytes().splitlines(keepends=True)


# --- stages and progress ---------------------------------------------------------------------------------------------


def test_a_second_stage_is_planned_from_the_records_of_the_first(model, ran):
    seen = []
    found = run(model, prompts=3, again=2, progress=lambda done, of: seen.append((done, of)))
    assert ran == ["prompt 0", "prompt 1", "prompt 2", "again 0", "again 1"]
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert found.inner is not None and found.inner.again.tolist() == [float(found.values.max())] * 2
    assert found.strongest == f"prompt {int(found.values.argmax())}"


def test_progress_never_passes_what_is_expected(model, monkeypatch):
    monkeypatch.setattr(TinyAnalysis, "expected", lambda self, facts: 1)
    seen = []
    run(model, prompts=3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_in_a_folder_and_without_one_the_numbers_are_the_same(model, tmp_path, ran):
    found = run(model, again=1)
    kept = run(model, again=1, out=tmp_path / "run")
    assert kept == found and len(ran) == 8
    assert run(model, again=1, out=tmp_path / "run") == found and len(ran) == 8  # read, not measured
    assert {path.name for path in (tmp_path / "run" / "figures").glob("*.html")} == {"values.html"}


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at, left", [("prompt 1", 4), ("again 0", 2), ("again 1", 1)])
def test_a_broken_run_goes_on_where_it_stopped(model, tmp_path, ran, monkeypatch, fails_at, left):
    whole = run(model, again=2)
    ran.clear()
    monkeypatch.setattr(TinyAnalysis, "fails_at", fails_at)
    with pytest.raises(AssertionError):
        run(model, again=2, out=tmp_path)
    before = len(ran)
    assert before + left == 5 and not (tmp_path / "result.json").exists()
    monkeypatch.setattr(TinyAnalysis, "fails_at", None)
    seen = []
    again = run(model, again=2, out=tmp_path, progress=lambda done, of: seen.append(done))
    assert again == whole and len(ran) == 5 and ran[before] == fails_at
    assert seen == list(range(before + 1, 6)) and len(lines(tmp_path)) == 5
    assert again.manifest.prompts == whole.manifest.prompts and len(whole.manifest.prompts) == 3
    assert again.manifest.fingerprint() == whole.manifest.fingerprint()


def test_measuring_is_summed_over_the_processes_that_worked_on_a_run(model, tmp_path, ran):
    run(model, out=tmp_path)
    kept = lines(tmp_path)
    first = json.loads(kept[0]) | {"seconds": 1000.0}
    (tmp_path / "units.jsonl").write_bytes(json.dumps(first).encode() + b"\n")
    (tmp_path / "result.json").unlink()
    found = run(model, out=tmp_path)
    assert ran[3:] == ["prompt 1", "prompt 2"]
    assert 1000 < found.manifest.measuring < 1100 and 0 < found.manifest.outside < 100


def test_settings_that_add_units_re_enter_a_finished_run(model, tmp_path, ran):
    alone = run(model, out=tmp_path)
    assert alone.inner is None
    more = run(model, again=2, out=tmp_path)
    assert ran == ["prompt 0", "prompt 1", "prompt 2", "again 0", "again 1"] and more == run(model, again=2)
    assert Tiny.load(tmp_path) == more and more.manifest.options["again"] == 2
    ran.clear()
    assert run(model, out=tmp_path) == alone and ran == []  # all there is needed has a record


def test_a_saved_result_that_is_not_current_is_made_again_from_its_records(model, tmp_path, ran, monkeypatch):
    found, made, reduce = run(model, out=tmp_path), [], TinyAnalysis.reduce
    ran.clear()
    monkeypatch.setattr(TinyAnalysis, "reduce", lambda *given: made.append(given) or reduce(*given))
    for current, times in ((True, 0), (False, 1)):
        monkeypatch.setattr(TinyAnalysis, "is_current", lambda analysis, result, current=current: current)
        assert run(model, out=tmp_path) == found and len(made) == times and ran == []


def test_other_settings_models_and_inputs_are_refused_by_name(model, tmp_path):
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("one")
    out = tmp_path / "run"
    run(model, out=out, file=file)
    other.write_text("one")
    run(model, out=out, file=other)  # the same content elsewhere
    other.write_text("two")
    with pytest.raises(UsageError, match=r"made with other options \(file: expected '.*, got '.*\)"):
        run(model, out=out, file=other)
    with pytest.raises(UsageError, match=r"\(prompts: expected 3, got 2\); give another --out"):
        run(model, out=out, file=file, prompts=2)
    with pytest.raises(UsageError, match=r"task: expected None, got 'own'"):
        run(model, out=out, file=file, task="own")
    with pytest.raises(UsageError, match="weights: expected"):
        run(tiny("qwen2"), out=out, file=file)


def test_the_identity_names_analysis_model_settings_and_inputs(model):
    made = TinyAnalysis(TinySettings(task="own"))
    made.ready(model)
    found = identity(made, model)
    assert found["analysis"] == "tiny" and found["dtype"] == "float32" and found["task"] == "own"
    assert found["weights"] == model.weights_hash and found["prompts"] == 3 and "again" not in found


# --- the call --------------------------------------------------------------------------------------------------------


def test_settings_come_as_an_instance_as_fields_or_as_a_preset(model):
    by_fields = run(model, prompts=2, seed=1)
    assert run(model, TinySettings(prompts=2, seed=1)) == by_fields == run(model, TinySettings(seed=1), prompts=2)
    assert len(run(model, preset="quick").values) == 1 and len(run(model, preset="quick", prompts=2).values) == 2
    assert by_fields.manifest.options["prompts"] == 2 and by_fields.manifest.seed == 1
    with pytest.raises(UsageError, match="expected TinySettings of tiny, got a dict"):
        run(model, {"prompts": 2})
    with pytest.raises(UsageError, match="settings or a preset"):
        run(model, TinySettings(), preset="quick")
    with pytest.raises(UsageError, match="unknown setting 'prompt'"):
        run(model, TinySettings(), prompt=2)
    with pytest.raises(UsageError, match="--prompts: expected 1 to 9"):
        run(model, prompts=0)


def test_an_analysis_without_its_model_is_not_applicable(model, monkeypatch):
    with pytest.raises(UsageError, match="not applicable: tiny needs a causal language model, got none"):
        run(None)
    monkeypatch.setattr(TinyAnalysis, "need", lambda self: Need.ENCODER)
    with pytest.raises(UsageError, match=f"not applicable: tiny needs an encoder, got {model.name}, a causal"):
        run(model)


def test_facts_are_those_of_the_model(model):
    facts = Facts.of(model)
    assert (facts.n_layers, facts.n_heads, facts.n_kv_heads, facts.head_dim, facts.context) == (2, 4, 2, 12, 128)
    assert facts.parameters == sum(parameter.numel() for parameter in model.hf.parameters()) > 0
    assert Facts.of(None) == Facts(name="no model")


# --- workspaces, prompts, passes -------------------------------------------------------------------------------------


def test_a_unit_s_workspace_lies_in_the_run_folder_or_goes_with_the_run(model, tmp_path, monkeypatch):
    run(model, prompts=1, out=tmp_path)
    assert (tmp_path / "work" / "prompt 0" / "checkpoint").read_text() == "prompt 0"
    given, workspace = [], TinyAnalysis.workspace
    monkeypatch.setattr(TinyAnalysis, "workspace", lambda self, unit: given.append(workspace(self, unit)) or given[-1])
    alive = []
    run(model, prompts=2, progress=lambda done, of: alive.append([(path / "checkpoint").exists() for path in given]))
    assert alive == [[True], [True, True]] and len({path.parent for path in given}) == 1
    assert not given[0].parent.exists()
    made = TinyAnalysis(TinySettings())
    assert workspace(made, Unit("a/b")) == workspace(made, Unit("a/b")) and workspace(made, Unit("a/b")).name == "a-b"
    made.tidy()


def test_the_prompts_are_kept_once_and_can_be_read(model, tmp_path):
    run(model, again=2, out=tmp_path)
    made = TinyAnalysis(TinySettings())
    made.ready(model)
    opened = probe.open(tmp_path)
    kept = opened.prompts()
    assert [prompt["ids"] for prompt in kept] == [ids.tolist() for ids in made.ids]
    assert tuple(prompt["hash"] for prompt in kept) == opened.manifest.prompts
    assert all(prompt["text"] is None for prompt in kept)


def test_passes_are_measuring_over_the_plain_reading_of_the_same_tokens(model, tmp_path, monkeypatch):
    speed = measure(model)
    monkeypatch.setattr("probe.frame.run.measure_speed", lambda model: speed)
    found = run(model, again=1, out=tmp_path)
    # three prompts of 8, 12 and 8 tokens, after which 0, 1 and 2 tokens are said to be decoded; `again` reads one twice
    plain = plain_seconds(model, speed, [(8, 0), (12, 1), (8, 2)])
    assert found.manifest.passes == pytest.approx(found.manifest.measuring / plain) and found.manifest.passes > 0
    assert plain == pytest.approx(
        (2 * operations(model, 8) + operations(model, 12)) * speed.per_operation + 3 * speed.per_step
    )
    assert Result.load(tmp_path).manifest == found.manifest


def test_speed_is_measured_within_the_context_of_a_small_model(model):
    assert model.context == 128
    speed = measure(model)
    assert speed.per_operation > 0 and speed.per_step > 0 and speed.per_row >= 0
    assert operations(model, 20) > 2 * operations(model, 10) and operations(model, 10, 50) > operations(model, 10)


# --- results inside results ------------------------------------------------------------------------------------------


def test_nested_results_are_saved_in_folders_of_their_name_and_come_back_equal(model, tmp_path):
    found = run(model, again=2, out=tmp_path)
    loaded = Result.load(tmp_path)
    assert isinstance(loaded, Tiny) and loaded == found and loaded.inner == found.inner
    assert loaded.inner is not None and loaded.inner.manifest == found.inner.manifest
    assert Inner.load(tmp_path / "inner") == found.inner and list(found.parts()) == ["inner"]
    assert probe.open(tmp_path)["inner"] == found.inner and len(probe.open(tmp_path)) == 2
    other = Tiny(
        manifest=found.manifest, values=found.values, strongest=found.strongest,
        inner=Inner(manifest=found.manifest, again=torch.zeros(2)),
    )  # fmt: skip
    assert other.differences(found) == ["inner"]
