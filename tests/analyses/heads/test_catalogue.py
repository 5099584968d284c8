"""The catalogue: one table of all scores, its JSON, its findings, and the retrieval heads of the packaged model."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from probe import Head, UsageError
from probe.analyses.heads import catalogue as module
from probe.analyses.heads import copying
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads import retrieval as retrieval_heads
from probe.analyses.heads.catalogue import KINDS, HeadCatalogue, catalogue, correlation_table
from probe.models import Model


@pytest.fixture(scope="module")
def found(llama: Model) -> HeadCatalogue:
    return catalogue(llama, sequences=3, length=24)


def test_every_head_has_every_score(found: HeadCatalogue):
    table = found.to_df()
    assert list(found.scores) == list(KINDS) and len(table) == 270
    assert not table.isna().any().any()
    assert (table["induction"].diff().dropna() <= 0).all()
    assert (table["kv_group"] == table["head"] // 3).all()
    for kind in ("induction", "previous_token", "duplicate_token", "sink"):
        assert ((table[f"{kind}_low"] <= table[kind]) & (table[kind] <= table[f"{kind}_high"])).all()
    assert "copying_low" not in table  # computed from the weights: nothing was sampled
    assert found.notes == ("copying: gains of the input norms and the final norm folded in",)


def test_the_scores_are_those_of_the_single_analyses(llama: Model, found: HeadCatalogue):
    patterns = pattern_heads.run(llama, sequences=3, length=24)
    for pattern in pattern_heads.PATTERNS:
        assert torch.equal(found.scores[pattern], patterns.score(pattern))
    assert torch.equal(found.scores["copying"], copying.run(llama).score)


def test_json_lists_the_best_head_first_with_intervals(found: HeadCatalogue):
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(content) == {"manifest", "heads", "correlations", "findings", "notes"}
    first = content["heads"][0]
    best = found.top("induction", 1)[0]
    assert (first["layer"], first["head"], first["kv_group"]) == (best.layer, best.head, best.head // 3)
    assert list(first["scores"]) == list(KINDS)
    value = first["scores"]["induction"]
    assert value["low"] < value["value"] < value["high"]
    assert value["value"] == pytest.approx(found.scores["induction"].max().item())
    assert first["scores"]["copying"]["low"] is None and first["scores"]["copying"]["value"] is not None
    assert len(content["heads"]) == 270 and len(content["correlations"]) == 10


def test_kinds_narrow_what_is_measured(llama: Model, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured what was not asked for")

    monkeypatch.setattr(module.copying, "run", refuse)
    monkeypatch.setattr(module.sink_scores, "run", refuse)
    steps: list[tuple[int, int]] = []
    found = catalogue(llama, kinds=["duplicate_token"], sequences=1, length=8, progress=lambda *at: steps.append(at))
    assert list(found.scores) == ["duplicate_token"] and steps == [(1, 1)]
    assert found.correlations.empty and list(found.figures()) == ["maps"]
    assert found.to_df()["duplicate_token_low"].isna().all()  # one sequence has no spread


def test_mistakes_are_one_line(llama: Model):
    with pytest.raises(UsageError, match=r"expected kinds among induction, .*, sink, got 'retrieval'"):
        catalogue(llama, kinds=["retrieval"])
    with pytest.raises(UsageError, match="at least one kind"):
        catalogue(llama, kinds=[])


@pytest.mark.parametrize(
    ("planted", "reading"),
    [(0.97, "mostly induction heads"), (0.65, "partly induction heads"), (0.1, "not simply induction heads")],
)
def test_the_finding_follows_the_correlation(found: HeadCatalogue, planted: float, reading: str):
    """Retrieval = r x induction + sqrt(1 - r^2) x noise, both standardised, has Pearson r with induction."""
    induction = found.scores["induction"].double()
    standard = (induction - induction.mean()) / induction.std()
    noise = torch.randn(30, 9, generator=torch.Generator().manual_seed(0)).double()
    noise = noise - noise.mean() - (noise * standard).sum() / standard.pow(2).sum() * standard
    noise /= noise.std()
    scores = {"retrieval": planted * standard + (1 - planted**2) ** 0.5 * noise, "induction": induction}
    other = replace(found, scores=scores, correlations=correlation_table(scores))
    pair = other.correlation("induction", "retrieval")
    assert pair is not None and pair["pearson"] == pytest.approx(planted)
    assert f"correlate at .{round(100 * planted):02d}" in other.findings[0] and reading in other.findings[0]
    assert reading in other.figures()["retrieval_induction"].headline


def test_a_saved_catalogue_reads_back(found: HeadCatalogue, tmp_path):
    assert HeadCatalogue.load(found.save(tmp_path)) == found
    assert {path.name for path in (tmp_path / "figures").glob("*.html")} == {"maps.html", "correlations.html"}


def test_a_retrieval_run_becomes_the_first_column(llama: Model):
    generator = torch.Generator().manual_seed(0)
    per_sample = torch.rand(4, 30, 9, generator=generator).double()
    manifest = catalogue(llama, kinds=["induction"], sequences=1, length=8).manifest
    retrieval: Any = SimpleNamespace(score=per_sample.mean(0), per_sample=per_sample, manifest=manifest)
    found = catalogue(llama, kinds=["induction"], retrieval=retrieval, sequences=2, length=8)
    assert list(found.scores) == ["retrieval", "induction"]
    table = found.to_df()
    assert (table["retrieval"].diff().dropna() <= 0).all() and table["retrieval"][0] == per_sample.mean(0).max().item()
    assert found.manifest.options["retrieval"] == manifest.fingerprint()
    assert "retrieval_induction" in found.figures()


@pytest.mark.slow
def test_the_packaged_models_retrieval_heads_are_mostly_induction_heads(llama: Model):
    retrieval = retrieval_heads.run(llama, lengths=(300,))
    found = catalogue(llama, kinds=["induction"], retrieval=retrieval)
    pair = found.correlation("retrieval", "induction")
    assert pair is not None and 0.85 < pair["pearson"] < 1 and pair["low"] > 0.7
    assert found.findings[0].endswith("these heads are mostly induction heads")
    assert found.top("retrieval", 1) == found.top("induction", 1) == [Head(18, 6)]
