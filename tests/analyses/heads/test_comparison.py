"""Comparison of runs: shared heads, correlation, and the table and figure that show them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from probe import Head, UsageError
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads import sink_scores
from probe.analyses.heads.catalogue import catalogue
from probe.analyses.heads.comparison import Comparison, compare, score_map
from probe.analyses.heads.patterns import PatternHeads
from probe.analyses.heads.sink_scores import SinkScores
from probe.models import Model


@pytest.fixture(scope="module")
def runs(llama: Model) -> tuple[PatternHeads, PatternHeads]:
    """Two runs on other random tokens."""
    return (
        pattern_heads.run(llama, sequences=2, length=24, seed=0),
        pattern_heads.run(llama, sequences=2, length=24, seed=1),
    )


def test_two_runs_of_one_model_agree(runs: tuple[PatternHeads, PatternHeads]):
    found = compare(*runs, kind="induction", k=10)
    assert found.pearson > 0.95 and found.low < found.pearson < found.high
    assert len(found.shared) >= 8 and found.expected == pytest.approx(100 / 270) and found.chance < 1e-9
    assert found.shared[0] == Head(18, 6)
    assert torch.equal(found.a, runs[0].score("induction")) and torch.equal(found.b, runs[1].score("induction"))
    assert found.a_name != found.b_name and found.a_name.startswith("llama (")
    assert f"share {len(found.shared)} of their top 10 heads (0.4 by chance)" in found.finding


def test_two_scores_of_other_heads_do_not_agree(runs: tuple[PatternHeads, PatternHeads]):
    mixed = compare(runs[0], runs[1], kind="previous_token", k=10)
    assert Head(18, 6) not in mixed.shared and mixed.pearson > 0.95
    assert compare(runs[0], runs[0], kind="induction").pearson == pytest.approx(1)


def test_the_table_ranks_every_head_in_both_runs(runs: tuple[PatternHeads, PatternHeads]):
    found = compare(*runs, kind="induction", k=10)
    table = found.to_df()
    assert len(table) == 270 and table["a_rank"].tolist() == list(range(1, 271))
    assert sorted(table["b_rank"]) == list(range(1, 271))
    top = table[(table["a_rank"] <= 10) & (table["b_rank"] <= 10)]
    assert [Head(layer, head) for layer, head in zip(top["layer"], top["head"], strict=True)] == list(found.shared)
    assert table["shared"].sum() == len(found.shared)


def test_a_saved_comparison_reads_back(runs: tuple[PatternHeads, PatternHeads], tmp_path):
    found = compare(*runs, kind="induction", k=10)
    read = Comparison.load(found.save(tmp_path))
    assert read == found and read.manifest.options["b"] == runs[1].manifest.fingerprint()
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["finding"] == found.finding and content["shared"][0] == {"layer": 18, "head": 6}


def test_the_map_of_each_kind_of_result(llama: Model, runs: tuple[PatternHeads, PatternHeads]):
    sinks: SinkScores = sink_scores.run(llama, samples=1, length=16)
    assert torch.equal(score_map(sinks, "sink"), sinks.score)
    heads = catalogue(llama, kinds=["induction"], sequences=2, length=24)
    assert torch.equal(score_map(heads, "induction"), runs[0].score("induction"))
    assert compare(heads, runs[0], kind="induction").pearson == pytest.approx(1)
    with pytest.raises(UsageError, match="expected one of the scores induction, got 'retrieval'"):
        score_map(heads, "retrieval")
    with pytest.raises(UsageError, match="expected a pattern among"):
        score_map(runs[0], "retrieval")
    with pytest.raises(UsageError, match="a score per layer and head, got a Comparison"):
        score_map(compare(*runs, kind="induction"), "induction")


def test_models_of_other_shapes_are_refused(runs: tuple[PatternHeads, PatternHeads]):
    other = replace(runs[0], induction=torch.rand(1, 2, 4))
    with pytest.raises(UsageError, match="same layers x heads, got 30 x 9 and 2 x 4"):
        compare(runs[0], other, kind="induction")
