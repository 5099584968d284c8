"""The search of a circuit on the packaged model, eight pairs, and what is made of its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from probe.analyses.circuits.end_attention import FIRST, OTHER, EndAttention
from probe.analyses.circuits.repair import result as repair
from probe.analyses.circuits.reuse import result as reuse
from probe.analyses.circuits.roles import called
from probe.analyses.circuits.search import result as circuits
from probe.analyses.circuits.search.result import Circuit, Settings, stage_table
from probe.errors import UsageError
from probe.heads import Head
from probe.patching.effects import Effects

SMALL = Settings(task="ioi", prompts=8, stages=2, draws=1, batch=8)
ROLES = ("IO", "S1", "S2", FIRST, OTHER)


def looking(**weights: float) -> EndAttention:
    """One head whose END row has these weights."""
    return EndAttention(torch.tensor([[[weights.get(role.replace(" ", "_"), 0.0) for role in ROLES]]]), ROLES)


@pytest.mark.parametrize(
    ("weights", "effect", "name"),
    [
        ({"IO": 0.6}, 1.0, "mover"),
        ({"IO": 0.6}, -1.0, "copy suppression"),
        ({"S1": 0.1, "S2": 0.3, "IO": 0.3}, 1.0, "negative mover"),
        ({"S2": 0.6}, -1.0, "wrong mover"),
        ({"IO": 0.1, "first_token": 0.8}, 1.0, "parked"),
        ({"IO": 0.1, "elsewhere": 0.8}, 1.0, "other"),
    ],
)
def test_heads_are_called_by_what_they_read_and_do(weights, effect, name):
    assert called(looking(**weights), Head(0, 0), effect) == name


def test_a_head_that_reads_every_answer_is_a_mover():
    """Two wrong answers together get more than the right one, and neither does alone."""
    roles = ("right", "wrong 1", "wrong 2", FIRST, OTHER)
    attention = EndAttention(torch.tensor([[[0.25, 0.19, 0.18, 0.1, 0.28], [0.1, 0.2, 0.05, 0.1, 0.55]]]), roles)
    assert called(attention, Head(0, 0), 1.0) == "mover" and called(attention, Head(0, 1), 1.0) == "negative mover"


def test_a_stage_keeps_the_largest_effects_that_are_more_than_noise():
    clean, corrupted = torch.zeros(4), torch.full((4,), -10.0)
    patched = torch.tensor(
        [[-5.0, -5, -5, -5], [0.5, 0.5, 0.4, 0.6], [-9, 9, -9, 8], [-0.05, -0.05, -0.05, -0.05], [2, 2, 2, 1.9]]
    )
    heads = tuple(Head(0, head) for head in range(5))
    attention = EndAttention(torch.zeros(1, 5, len(ROLES)), ROLES)
    table = stage_table(Effects(heads, patched, clean, corrupted), "logits", attention, top=2)
    assert table["percent"].round(2).tolist() == [50.0, -5.0, 2.5, 0.5, -19.75]
    assert table.query("kept")["name"].tolist() == ["L0H0", "L0H4"]
    table = stage_table(Effects(heads, patched, clean, corrupted), "logits", attention, top=5)
    assert table.query("kept")["name"].tolist() == ["L0H0", "L0H1", "L0H4"]  # L0H2 is noise, L0H3 too small


@pytest.fixture(scope="module")
def found(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuit")
    seen: list[tuple[int, int]] = []
    result = circuits.run(llama, settings=SMALL, out=folder, progress=lambda done, total: seen.append((done, total)))
    return result, folder, seen


def test_the_negative_mover_and_the_inhibition_head_are_found(found):
    result, _, _ = found
    first = result.stage("logits").iloc[0]
    assert first["name"] == "L23H3" and first["role"] == "negative mover" and first["percent"] > 30
    assert {"L23H0", "L23H1", "L23H2", "L23H7"} <= set(result.stage("logits").query("role == 'mover'")["name"])
    assert result.stage("queries").iloc[0]["name"] == "L20H0"
    assert "L23Q3" in result.receivers["queries"] and result.receivers["logits"] == ["logits"]
    # heads that no receiver follows have no path
    assert (result.stage("queries").query("layer >= 23")["percent"] == 0).all()


def test_the_circuit_keeps_more_than_random_heads_do(found):
    result, _, _ = found
    assert result.value("faithfulness", "whole model") == 1 and result.value("faithfulness", "nothing") == 0
    assert result.value("faithfulness", "circuit") > 0.2 > abs(result.value("faithfulness", "random"))
    assert result.value("minimality", "L23H3") > 0.2
    whole, corrupted = result.tests.iloc[0]["ld"], result.tests.iloc[0]["ld"] + result.gap
    assert whole == pytest.approx(result.behaviour["ld"], abs=1e-3)
    assert result.percent().sum() == pytest.approx(98, abs=6)  # MLPs recomputed: direct paths make up nearly all
    assert corrupted < 0 and result.findings[0].startswith(f"LD {whole:.2f}, corrupted {corrupted:.2f}; L23H3")


def test_progress_and_a_finished_run(found, llama, monkeypatch):
    result, folder, seen = found
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert len({total for _, total in seen}) == 1 and seen[-1][0] <= seen[-1][1]
    monkeypatch.setattr(type(llama), "logits", lambda *a, **options: pytest.fail("the finished run was done again"))
    assert circuits.run(llama, settings=SMALL, out=folder) == result == Circuit.load(folder)
    with pytest.raises(UsageError, match="made with other options"):
        circuits.run(llama, settings=replace(SMALL, top=3), out=folder)


def test_pictures_name_what_they_show(found):
    result, _, _ = found
    drawn: Any = result.figures()
    assert list(drawn) == ["circuit", "heads", "tests"] and "L23H3" in drawn["heads"].headline
    texts = [text for trace in drawn["circuit"].figure.data if trace.text is not None for text in trace.text]
    assert sorted(texts) == sorted(result.to_df()["name"])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"stages": 5}, "--stages: expected 1 to 4, got 5"), ({"fill": "x"}, "--fill"), ({"top": 0}, "--top")],
)
def test_settings_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def test_overlap_counts_shared_heads_and_shares_of_effects():
    table = pd.DataFrame({"name": list("abcd"), "first": [4.0, -3.0, 2.0, 1.0], "other": [-1.0, 3.0, 0.0, 4.0]})
    found = reuse.overlap(table, "other", k=2)
    assert found["shared"] == 1 and found["chance"] == 1.0  # {a, b} and {d, b}, signs aside
    assert found["weighted"] == pytest.approx(1 / 8 + 3 / 10 + 0 + 1 / 10)
    p = torch.tensor([1.0, -2.0, 3.0])
    assert reuse.weighted(p, -5 * p) == pytest.approx(1) and reuse.weighted(p, torch.tensor([0.0, 0, 0.1])) == 0.5


def test_reuse_of_a_circuit_by_itself_is_whole(found):
    result, _, _ = found
    same = reuse.compare(dict.fromkeys(reuse.RUNS, result), k=5)
    assert same.overlaps["shared"].tolist() == [5] * 6 and same.overlaps["weighted"].tolist() == pytest.approx([1] * 6)
    assert same.overlaps["chance"].iloc[0] == pytest.approx(25 / 270)
    assert same.shared() == result.stage("logits")["name"][:5].tolist() and "share 5 of 5" in same.findings[0]
    assert list(same.figures()) == ["circuits", "scatter", "overlaps"]
    roles = same.roles().set_index("role")
    assert roles.loc["negative mover", "both"] == roles.loc["negative mover", "first"] == "L23H3"
    assert " ".join(roles["both"]).split() and (roles["first"] == roles["second"]).all()


@torch.no_grad()
def test_a_forced_row_is_the_mean_of_the_two_values(llama):
    pairs = repair.task(llama, "colored-objects", prompts=3, seed=4).pairs(llama)
    wrong, head = repair.wrong_columns(pairs), Head(23, 3)
    rows: dict[str, torch.Tensor] = {}

    def keep(_, args):
        rows["z"] = args[0].clone()

    projection = llama.hf.model.layers[23].self_attn.o_proj
    handles = [
        projection.register_forward_pre_hook(keep),
        llama.hf.model.layers[23].self_attn.v_proj.register_forward_hook(lambda _, a, out: rows.update(v=out.clone())),
    ]
    try:
        given = repair.answers(llama, pairs, heads=[head], keys=wrong, batch=3)
    finally:
        for handle in handles:
            handle.remove()
    at = torch.arange(3)[:, None]
    order = next(pairs.batches(3))[0]
    v = rows["v"].view(3, -1, 3, 64)[at, wrong[order], 1].mean(1)
    torch.testing.assert_close(rows["z"][:, -1, 192:256], v, rtol=1e-4, atol=1e-5)
    plain = repair.answers(llama, pairs)
    assert given.top.shape == plain.top.shape == (3,)


def test_random_columns_spare_the_answers(llama):
    pairs = repair.task(llama, "colored-objects", prompts=5).pairs(llama)
    found = repair.random_columns(pairs, 2, seed=1)
    answers = torch.cat([repair.wrong_columns(pairs), pairs.roles["right"][:, None]], 1)
    for row in range(5):
        start = 0 if pairs.padding is None else int(pairs.padding[row].int().argmax())
        assert len(set(found[row].tolist())) == 2 and not set(found[row].tolist()) & set(answers[row].tolist())
        assert all(start <= column < pairs.end for column in found[row].tolist())


def test_accuracy_is_compared_answer_by_answer():
    before = repair.Answers(torch.tensor([0, 1, 0, 2]), torch.tensor([5, 6, 7, 8]))
    after = repair.Answers(torch.tensor([0, 0, 1, 0]), torch.tensor([5, 5, 5, 5]))
    row = repair.compared(after, before, torch.tensor([5, 5, 7, 8]))
    assert (row["best"], row["top1"], row["newly_wrong"], row["newly_right"], row["n"]) == (0.75, 0.5, 1, 2, 4)
    assert 0 < row["best_low"] < 0.75 < row["best_high"] < 1
