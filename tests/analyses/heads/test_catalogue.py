"""The catalogue: one table of all scores, its sentences, and the retrieval heads of the packaged model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from probe import Head
from probe.analyses import heads
from probe.analyses.heads import copying, sink_scores
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads.catalogue import SCORES, HeadCatalogue, catalogue, correlation_table
from probe.models import Model
from tests.analyses.heads.examples import MANIFEST

KINDS = tuple(SCORES)[1:]


@pytest.fixture(scope="module")
def found(llama: Model) -> HeadCatalogue:
    return heads.run(llama, kinds=[kind.replace("_", "-") for kind in KINDS]).catalogue


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


def test_the_scores_are_those_of_the_single_scorers(llama: Model, found: HeadCatalogue):
    patterns = pattern_heads.run(llama)
    for pattern in pattern_heads.PATTERNS:
        assert torch.equal(found.scores[pattern], patterns.score(pattern))
    assert torch.equal(found.per_sample["sink"], sink_scores.run(llama).per_sample)
    assert torch.equal(found.scores["copying"], copying.run(llama).score)


def test_the_table_lists_the_best_head_first_with_its_place(found: HeadCatalogue):
    table = found.tables()["heads"]
    best = found.top("induction", 1)[0]
    first = table.rows.to_dict("records")[0]
    assert (first["layer"], first["head"], first["kv_group"]) == (best.layer, best.head, best.head // 3)
    assert first["name"] == str(best) == table.columns[0].cell(first)
    assert first["induction_low"] < first["induction"] < first["induction_high"]
    assert first["induction"] == pytest.approx(found.scores["induction"].max().item())
    assert [column.name for column in table.columns] == ["name", "kv_group", *KINDS]
    assert all(f"{column.header}: " in table.meaning for column in table.columns)
    assert len(table.rows) == 270 and len(found.correlations) == 10


def test_kinds_narrow_what_is_measured(llama: Model, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured what was not asked for")

    monkeypatch.setattr(copying, "run", refuse)
    monkeypatch.setattr(sink_scores, "run", refuse)
    steps: list[tuple[int, int]] = []
    few = heads.run(llama, kinds=["duplicate-token"], progress=lambda *at: steps.append(at)).catalogue
    assert list(few.scores) == ["duplicate_token"] and steps == [(1, 1)]
    assert few.correlations.empty and list(few.figures()) == ["maps"]


def test_one_sample_has_no_interval():
    few = catalogue({"duplicate_token": torch.rand(1, 2, 4)}, MANIFEST, n_kv_heads=2)
    assert few.to_df()["duplicate_token_low"].isna().all()  # one sequence has no spread
    assert torch.equal(few.head_scores()["duplicate_token"].values, few.scores["duplicate_token"])


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
    assert f"correlate at .{round(100 * planted):02d}" in other.summary()[0] and reading in other.summary()[0]
    assert reading in other.figures()["retrieval_induction"].headline


def test_a_saved_catalogue_reads_back(found: HeadCatalogue, tmp_path):
    assert HeadCatalogue.load(found.save(tmp_path)) == found
    assert {path.name for path in (tmp_path / "figures").glob("*.html")} == {"maps.html", "correlations.html"}


def test_the_retrieval_score_is_the_first_column():
    per_sample = torch.rand(4, 30, 9, generator=torch.Generator().manual_seed(0)).double()
    samples = {"induction": torch.rand(2, 30, 9), "retrieval": per_sample}
    both = catalogue(samples, MANIFEST, n_kv_heads=3)
    assert list(both.scores) == ["retrieval", "induction"]
    table = both.to_df()
    assert (table["retrieval"].diff().dropna() <= 0).all() and table["retrieval"][0] == per_sample.mean(0).max().item()
    assert "retrieval_induction" in both.figures()


@pytest.mark.slow
def test_the_packaged_models_retrieval_heads_are_mostly_induction_heads(short_run):
    table = short_run.catalogue
    pair = table.correlation("retrieval", "induction")
    assert pair is not None and 0.85 < pair["pearson"] < 1 and pair["low"] > 0.7
    assert table.summary()[0].endswith("the retrieval heads are mostly induction heads.")
    assert table.top("retrieval", 1) == table.top("induction", 1) == [Head(18, 6)]
    assert {finding.name: finding.verdict for finding in short_run.findings()}["induction"] == "holds"
