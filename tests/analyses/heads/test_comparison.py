"""Comparison of runs: shared heads, correlation, and the table and figure that show them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probe import Head, UsageError
from probe.analyses import heads
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads.catalogue import HeadCatalogue, catalogue
from probe.analyses.heads.comparison import Comparison, compare, score_map
from probe.models import Model
from tests.analyses.heads import examples
from tests.analyses.heads.examples import MANIFEST


@pytest.fixture(scope="module")
def runs(llama: Model) -> tuple[HeadCatalogue, HeadCatalogue]:
    """Two runs on other random tokens."""
    found = []
    for seed in (0, 1):
        scores = pattern_heads.measure(llama, sequences=2, length=24, seed=seed).data
        samples = {pattern: scores[pattern] for pattern in pattern_heads.PATTERNS}
        found.append(catalogue(samples, replace(MANIFEST, name="llama", seed=seed), n_kv_heads=3))
    return found[0], found[1]


def test_two_runs_of_one_model_agree(runs: tuple[HeadCatalogue, HeadCatalogue]):
    found = compare(*runs, kind="induction", k=10)
    assert found.pearson > 0.95 and found.low < found.pearson < found.high
    assert len(found.shared) >= 8 and found.expected == pytest.approx(100 / 270) and found.chance < 1e-9
    assert found.shared[0] == Head(18, 6)
    assert torch.equal(found.a, runs[0].scores["induction"]) and torch.equal(found.b, runs[1].scores["induction"])
    assert found.a_name != found.b_name and found.a_name.startswith("llama (")
    assert f"share {len(found.shared)} of their top 10 heads (0.4 by chance)" in found.summary()[0]


def test_two_scores_of_other_heads_do_not_agree(runs: tuple[HeadCatalogue, HeadCatalogue]):
    mixed = compare(runs[0], runs[1], kind="previous_token", k=10)
    assert Head(18, 6) not in mixed.shared and mixed.pearson > 0.95
    assert compare(runs[0], runs[0], kind="induction").pearson == pytest.approx(1)


def test_the_table_ranks_every_head_in_both_runs(runs: tuple[HeadCatalogue, HeadCatalogue]):
    found = compare(*runs, kind="induction", k=10)
    table = found.to_df()
    assert len(table) == 270 and table["a_rank"].tolist() == list(range(1, 271))
    assert sorted(table["b_rank"]) == list(range(1, 271))
    top = table[(table["a_rank"] <= 10) & (table["b_rank"] <= 10)]
    assert [Head(layer, head) for layer, head in zip(top["layer"], top["head"], strict=True)] == list(found.shared)
    assert table["shared"].sum() == len(found.shared)


def test_a_saved_comparison_reads_back(runs: tuple[HeadCatalogue, HeadCatalogue], tmp_path):
    found = compare(*runs, kind="induction", k=10)
    read = Comparison.load(found.save(tmp_path))
    assert read == found and read.manifest.options["b"] == runs[1].manifest.fingerprint()
    assert found.to_dict()["shared"][0] == {"layer": 18, "head": 6}


def test_the_map_of_each_kind_of_result(runs: tuple[HeadCatalogue, HeadCatalogue]):
    found = examples.results()[0]
    assert torch.equal(score_map(found, "induction"), found.catalogue.scores["induction"])
    assert torch.equal(score_map(found.retrieval, "retrieval"), found.retrieval.score)
    assert heads.compare(found, found.catalogue, kind="retrieval").pearson == pytest.approx(1)
    with pytest.raises(UsageError, match="scores induction, previous_token, duplicate_token, got 'retrieval'"):
        score_map(runs[0], "retrieval")
    with pytest.raises(UsageError, match=r"expected one of the scores \(none\), got 'induction'"):
        score_map(compare(*runs, kind="induction"), "induction")


def test_models_of_other_shapes_are_refused(runs: tuple[HeadCatalogue, HeadCatalogue]):
    other = catalogue({"induction": torch.rand(1, 2, 4)}, MANIFEST, n_kv_heads=2)
    with pytest.raises(UsageError, match="same layers x heads, got 30 x 9 and 2 x 4"):
        compare(runs[0], other, kind="induction")
