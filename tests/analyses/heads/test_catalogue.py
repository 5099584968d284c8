"""The catalogue: one table of all scores, and its sentences; test_known_heads.py has those of the packaged model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probe.analyses.heads.catalogue import SCORES, HeadCatalogue, catalogue, correlation_table
from tests.analyses.heads.examples import MANIFEST

KINDS = tuple(SCORES)[1:]


@pytest.fixture(scope="module")
def found() -> HeadCatalogue:
    """A catalogue of random scores in the shape of the packaged model's."""
    generator = torch.Generator().manual_seed(0)
    samples = {kind: torch.rand(4, 30, 9, generator=generator) for kind in KINDS if kind != "copying"}
    computed = {"copying": 2 * torch.rand(30, 9, generator=generator) - 1}
    return catalogue(samples, MANIFEST, n_kv_heads=3, computed=computed)


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
