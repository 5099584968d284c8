from __future__ import annotations

import json
import math
import pickle
import struct
import sys
from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor

from probe.errors import ProbeError, UsageError
from probe.figures import Plot
from probe.figures.pages import save_figures
from probe.figures.pictures import save_pictures
from probe.heads import Head
from probe.saving.manifest import SCHEMA, Manifest
from probe.saving.results import Result


@dataclass(frozen=True)
class Finding(Result):
    score: Tensor
    intervals: dict[str, Tensor]
    samples: pd.DataFrame
    best: list[Head]
    lengths: tuple[int, ...]
    pairs: tuple[tuple[str, float], ...]
    accuracy: float
    note: str | None = None

    def to_df(self) -> pd.DataFrame:
        return pd.DataFrame({"head": [str(head) for head in self.best], "<score>": [0.5] * len(self.best)})

    def figures(self) -> dict[str, Plot]:
        figure = go.Figure(go.Heatmap(z=self.score.float().tolist()))
        curve = go.Figure(go.Scatter(y=[3, 2, 1]))
        return {"map": Plot(figure, headline="map of ünïcode"), "curve": Plot(curve, headline="A curve falls")}


@dataclass(frozen=True)
class Other(Result):
    value: float

    def to_df(self) -> pd.DataFrame:
        return pd.DataFrame({"value": [self.value]})

    def figures(self) -> dict[str, Plot]:
        return {}


def manifest(**changes) -> Manifest:
    fields = {
        "analysis": "finding",
        "name": "llama",
        "model": "SmolLM2-135M-Instruct",
        "revision": None,
        "weights_hash": "ab" * 32,
        "dtype": "float32",
        "device": "cpu",
        "hardware": "x86_64 AVX2, 2 threads",
        "attention": "probe/blocked",
        "seed": 0,
        "bos": False,
        "prompts": ("00ff", "11ee"),
        "options": {"lengths": [300], "limit": math.inf},
        "interventions": ({"heads": ["L1H2"]},),
        "versions": {"torch": "2.13.0"},
        "measuring": 12.5,
        "outside": 0.0,
        "passes": None,
        "peak_memory": 10**9,
        "peak_device_memory": None,
        "command": "probe heads",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**(fields | changes))


def finding(**changes) -> Finding:
    base = torch.arange(12, dtype=torch.float32)
    fields = {
        "manifest": manifest(),
        "score": torch.tensor([[0.1, math.nan], [math.inf, 1 / 3]], dtype=torch.float64),
        "intervals": {"low": base.view(3, 4)[:, ::2], "high": base.view(3, 4)[1:].bfloat16()},
        "samples": pd.DataFrame({"length": [300, 600], "depth": [0.5, math.nan], "answer": ["42 ", None]}),
        "best": [Head(1, 1), Head(0, 0)],
        "lengths": (300, 600),
        "pairs": (("a", 1.5), ("b", -math.inf)),
        "accuracy": 0.1 + 0.2,
    }
    return Finding(**(fields | changes))


def test_everything_comes_back_bit_for_bit(tmp_path):
    saved = finding()
    saved.save(tmp_path / "run")
    for loaded in (Finding.load(tmp_path / "run"), Result.load(tmp_path / "run")):
        assert type(loaded) is Finding and loaded == saved and loaded.differences(saved) == []
        assert loaded.manifest == saved.manifest
        assert loaded.best == [Head(1, 1), Head(0, 0)] and type(loaded.best[0]) is Head
        assert loaded.pairs == saved.pairs and type(loaded.pairs[0]) is tuple
        assert loaded.intervals["high"].dtype == torch.bfloat16
        torch.testing.assert_close(loaded.score, saved.score, rtol=0, atol=0, equal_nan=True)
        pd.testing.assert_frame_equal(loaded.samples, saved.samples)


@pytest.mark.parametrize(
    "field, value",
    [
        ("score", torch.zeros(2, 2, dtype=torch.float64)),
        ("score", finding().score.float()),
        ("intervals", {"low": finding().intervals["low"]}),
        ("intervals", {**finding().intervals, "high": finding().intervals["high"].float()}),
        ("samples", finding().samples.assign(depth=[0.5, 0.0])),
        ("best", [Head(1, 1)]),
        ("accuracy", 0.3),
        ("accuracy", math.nan),
        ("note", "seen"),
    ],
)
def test_any_change_is_a_named_difference(field, value):
    assert finding(**{field: value}).differences(finding()) == [field]
    assert finding(**{field: value}) != finding()


def test_nan_equals_nan_and_the_manifest_is_left_aside():
    assert finding(accuracy=math.nan, manifest=manifest(seed=5)) == finding(accuracy=math.nan)
    assert Other(manifest=manifest(), value=1.0) != finding()


def test_saved_files_are_valid_json_without_pickles(tmp_path):
    finding().save(tmp_path)
    for name in ("manifest.json", "result.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "manifest.json",
        "result.json",
        "tensors.safetensors",
        "samples.parquet",
        "figures/map.html",
        "figures/curve.html",
        "figures/plotly.min.js",
    }
    for path in tmp_path.iterdir():
        if path.is_file():
            with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
                pickle.loads(path.read_bytes())


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    base = torch.arange(6.0)
    saved = finding(intervals={"low": base, "high": base[:], "middle": base[2:4]})
    assert Finding.load(saved.save(tmp_path)) == saved


def test_a_folder_cannot_name_a_module_to_import(tmp_path, monkeypatch):
    (tmp_path / "ran_by_a_result.py").write_text("class Finding: pass")
    monkeypatch.syspath_prepend(tmp_path)
    finding().save(tmp_path / "run")
    edit(tmp_path / "run" / "result.json", type="ran_by_a_result:Finding")
    with pytest.raises(ProbeError, match="does not know"):
        Result.load(tmp_path / "run")
    assert "ran_by_a_result" not in sys.modules


def test_figure_pages_need_no_network(tmp_path):
    save_figures(finding().figures(), tmp_path, caption="llama")
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in page and "map of" in page
    assert page.count("src=") == 1 and "https://cdn" not in page
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


@pytest.mark.slow
def test_pictures_are_pngs_of_the_notebook_s_size_or_none_at_all(tmp_path, monkeypatch):
    wide = Plot(go.Figure(go.Bar(y=[1, 2])), headline="Two bars", width=640, height=300)
    layout = wide.notebook().to_dict()["layout"]
    for path in save_pictures({"wide": wide}, tmp_path, scale=1):
        content = path.read_bytes()
        assert path.parent == tmp_path and content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (layout["width"], layout["height"])
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    assert save_pictures(finding().figures(), tmp_path / "none") == []
    assert list((tmp_path / "none").iterdir()) == []


def test_a_save_that_fails_leaves_no_finished_run(tmp_path):
    finding().save(tmp_path)
    with pytest.raises(TypeError, match=r"Finding\.note holds a complex"):
        finding(note=1j).save(tmp_path)
    with pytest.raises(ProbeError, match="not finished"):
        Finding.load(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda folder: edit(folder / "manifest.json", schema=SCHEMA + 1), "another version of probe"),
        (lambda folder: edit(folder / "manifest.json", speed=3), "other fields than expected: speed"),
        (lambda folder: (folder / "result.json").unlink(), "not finished"),
        (lambda folder: (folder / "result.json").write_text("[]"), "not a saved result"),
        (lambda folder: edit(folder / "result.json", type="os:system"), "does not know"),
        (lambda folder: edit(folder / "result.json", type="probe.analyses.nothing:Here"), "does not know"),
        (lambda folder: edit(folder / "result.json", fields={"score": 1}), r"other fields than this version's Finding"),
        (lambda folder: (folder / "tensors.safetensors").write_bytes(b"torn"), "damaged"),
        (lambda folder: (folder / "tensors.safetensors").unlink(), "damaged"),
        (lambda folder: (folder / "samples.parquet").write_bytes(b"torn"), "damaged"),
        (lambda folder: (folder / "samples.parquet").unlink(), "damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, change, words):
    finding().save(tmp_path)
    change(tmp_path)
    with pytest.raises(ProbeError, match=words) as caught:
        Finding.load(tmp_path)
    assert "\n" not in str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_kind_of_result_is_refused(tmp_path):
    Other(manifest=manifest(), value=math.nan).save(tmp_path)
    assert math.isnan(Other.load(tmp_path).value)
    with pytest.raises(ProbeError, match="expected a saved Finding, got a Other"):
        Finding.load(tmp_path)


def test_dict_form_is_plain_json():
    content = finding().to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["score"] == [[0.1, None], ["Infinity", 1 / 3]]
    assert content["samples"][1] == {"length": 600, "depth": None, "answer": None}
    assert content["best"][0] == {"layer": 1, "head": 1}
    assert content["manifest"]["fingerprint"] == manifest().fingerprint()


def test_short_and_html_forms():
    assert repr(finding()) == (
        "Finding(llama: score=Tensor[2, 2], intervals={low: Tensor[3, 2], high: Tensor[2, 4]}, samples=2 rows, "
        "best=[L1H1, L0H0], lengths=[300, 600], pairs=[['a', 1.5], ['b', -inf]], accuracy=0.3, note=None)"
    )
    page = finding(best=[Head(i, 0) for i in range(40)], manifest=manifest(model="a<b"))._repr_html_()
    assert "Finding of llama (a&lt;b)" in page and "&lt;score&gt;" in page
    assert "L9H0" in page and "L10H0" not in page and "30 more rows" in page


def test_plot_is_the_first_figure():
    assert finding().plot().to_dict()["layout"]["title"]["text"] == "<b>map of ünïcode</b>"
    assert finding().plot("curve").to_dict()["layout"]["title"]["text"] == "<b>A curve falls</b>"
    with pytest.raises(UsageError, match="expected one of the plots map, curve, got"):
        finding().plot("maps")


def test_a_result_is_not_hashable():
    with pytest.raises(TypeError, match="unhashable"):
        hash(finding())
    assert replace(finding(), accuracy=0.5).accuracy == 0.5
