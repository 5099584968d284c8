"""Tables, files, scores and maps of results that are written by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from probe.analyses.measures.intervals import bootstrap_mean
from probe.saving.results import Result
from tests.analyses.stats.examples import NAMES, example, results


def test_the_mean_of_a_head_is_over_texts_and_its_interval_is_the_bootstrap():
    entropy = example().by_head["entropy"]["sentence"]
    # the first text's sentences have 1 and 3 nats in head 0, 2 and 2 in head 1
    assert entropy.mean.tolist() == [[3.0, 1.0]] and entropy.texts == 2
    low, high = bootstrap_mean(torch.tensor([[2.0, 2.0], [4.0, 0.0]]), seed=0)
    assert entropy.low.tolist() == [low.tolist()] and entropy.high.tolist() == [high.tolist()]


def test_each_role_has_a_mean_over_the_texts_where_it_speaks():
    found = example(("user", "assistant", "user"), unit="turn")
    entropy = found.by_head["entropy"]
    assert entropy["user"].mean.tolist() == [[2.5, 1.0]] and entropy["user"].texts == 2
    assert entropy["assistant"].mean.tolist() == [[3.0, 2.0]] and entropy["assistant"].texts == 1
    assert entropy["assistant"].low.isnan().all()  # one text says nothing about the spread
    assert list(found.head_scores()) == [
        "entropy, user", "entropy, assistant", "mass first, user", "mass first, assistant",
    ]  # fmt: skip


def test_head_scores_carry_unit_sign_and_interval():
    scores = example().head_scores()
    assert scores["entropy"].unit == "nats" and scores["entropy"].sign.startswith("higher: the attention is spread")
    assert scores["mass first"].unit == "share" and scores["mass first"].layers == (0,)
    assert scores["mass first"].values.tolist() == [pytest.approx([0.8, 0.3])]
    assert scores["entropy"].low is not None


def test_the_tidy_table_has_a_row_for_each_layer_head_text_unit_and_statistic():
    table = example().tidy()
    assert list(table) == ["layer", "head", "text", "unit", "part", "statistic", "mean", "low", "high", "n"]
    assert len(table) == 3 * 2 * 1 * 2
    row = table[(table["text"] == NAMES[0]) & (table["unit"] == 0) & (table["head"] == 1)].set_index("statistic")
    assert row["mean"].to_dict() == pytest.approx({"entropy": 2.0, "mass first": 0.1})
    half = 3.182 * 0.2 / 2  # t of 3 degrees of freedom at 97.5 %
    assert row.loc["entropy", "low"] == pytest.approx(2 - half, abs=1e-3)
    assert row.loc["entropy", "high"] == pytest.approx(2 + half, abs=1e-3) and set(row["n"]) == {4}
    single = table.loc[(table["text"] == NAMES[0]) & (table["unit"] == 1)]
    assert all(low != low for low in single["low"]) and set(single["n"]) == {1}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_exported_file_is_the_tidy_table(tmp_path, kind):
    found = replace(example(), format=kind)
    found.save(tmp_path)
    path = tmp_path / f"statistics.{kind}"
    read = pd.read_parquet(path) if kind == "parquet" else pd.read_csv(path)
    pd.testing.assert_frame_equal(
        read.astype({"text": str, "part": str, "statistic": str}),
        found.tidy().astype({"text": str, "part": str, "statistic": str}),
        check_dtype=kind == "parquet",
        rtol=1e-5,
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_saved_result_loads_to_equality(tmp_path, number):
    found = results()[number]
    found.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded == found and loaded.to_df().equals(found.to_df())


def test_tables_rank_the_heads_and_say_what_the_numbers_mean():
    table = example().tables()["mass first"]
    assert table.rows["head"].tolist() == [0, 1] and table.rows["n"].tolist() == [2, 2]
    assert [column.header for column in table.columns] == ["layer", "head", "mass first", "texts"]
    assert table.columns[2].cell(table.rows.to_dict("records")[0]) == ".80 [.60, 1.00]"
    assert table.meaning.startswith("mass first: share of a query's attention; mean over the queries of each unit of")
    by_role = example(("user", "assistant", "user"), unit="turn").tables()["entropy"]
    assert [column.header for column in by_role.columns] == ["layer", "head", "part", "entropy", "texts"]
    assert by_role.rows["part"].tolist() == ["assistant", "user", "assistant", "user"]


def test_the_summary_names_the_heads_at_both_ends():
    assert example().summary() == (
        "Attention entropy averages 2.00 nats over 2 heads, from 1.00 nats (L0H1) to 3.00 nats (L0H0)",
        "Attention to the first token averages 55.0% over 2 heads, from 30.0% (L0H1) to 80.0% (L0H0)",
    )
    by_role = example(("user", "assistant", "user"), unit="turn").summary()
    assert by_role[1].startswith("Attention entropy (assistant) averages 2.50 nats")


def test_the_map_of_each_statistic_ends_at_its_largest_value():
    figures = example(("user", "assistant", "user"), unit="turn").figures()
    assert list(figures) == ["entropy", "mass-first"]
    figure, mass = (each.figure for each in figures.values())
    assert [list(map(list, trace["z"])) for trace in figure.to_dict()["data"]] == [[[2.5], [1.0]], [[3.0], [2.0]]]
    assert figure.layout.coloraxis.cmax == 3.0 and "nats" in figure.layout.coloraxis.colorbar.title.text
    assert mass.layout.coloraxis.cmax == 1.0
