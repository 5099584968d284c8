"""A run of `probe sinks` on a tiny model, whose activations are massive by low thresholds, is cut and continued."""

from __future__ import annotations

import shutil

import torch

from probe.analyses import sinks
from probe.analyses.heads import sink_scores
from probe.analyses.sinks import passes
from probe.analyses.sinks.settings import Settings
from probe.analyses.sinks.texts import Prose
from tests.probe.every_door import tiny

PROSE = (Prose("one", " ".join(f"w{3 + 7 * n % 80}" for n in range(40))), Prose("two", "w5 w9 w20 w31 w8 w40"))
TINY = Settings(prose=PROSE, randoms=1, min_magnitude=0.01, min_ratio=2.0, min_rows=2)


def test_a_broken_run_continues_to_the_same_numbers(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    found = sinks.run(tiny("llama"), TINY, out=whole)
    assert found.dims and len(found.causes) == 2 * len(passes.CONDITIONS)
    lines = (whole / "units.jsonl").read_bytes().splitlines(keepends=True)
    cut.mkdir()
    shutil.copy(whole / "config.json", cut)
    (cut / "units.jsonl").write_bytes(b"".join(lines[:3]))
    monkeypatch.setattr(passes, "measure", None)  # three of four passes are kept: only the last is run
    calls = []
    again = sinks.run(tiny("llama"), TINY, out=cut, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 4)] and again.differences(found) == []


def test_without_a_massive_activation_the_claims_about_it_are_not_applicable():
    found = sinks.run(tiny("llama"), TINY, min_magnitude=1e6)
    assert not found.dims and found.causes.empty
    verdicts = {finding.name: finding.verdict for finding in found.findings()}
    assert {verdicts[name] for name in ("zero-ruins", "mean-harmless", "massive-causes-sink")} == {"not applicable"}
    assert verdicts["first-token"] == verdicts["small-value"] == "cannot tell"  # two texts only


def test_the_scores_agree_with_those_of_probe_heads():
    model = tiny("llama")
    tokens, observer = model.tokens(PROSE[0].text), passes.SinkObserver()
    passes._loss(model, tokens, observer)
    with model.recording(("mass",), sets={"first": [0]}) as recording:
        model.prefill(tokens.ids)
    expected = sink_scores.sink_score(recording.stats().mass[..., 0])[0]
    torch.testing.assert_close(torch.stack(observer.first_mass), expected, rtol=1e-4, atol=1e-6)
