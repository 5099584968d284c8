"""ACT with its controls on a tiny model: what it says; and the filter on the packaged model beside single runs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from probe import Head, UsageError
from probe.analyses.act import analysis, run
from probe.analyses.act import conditions as act
from probe.analyses.act.analysis import ActAnalysis
from probe.analyses.act.classification import Example, Scorer, losses, sentiment
from probe.analyses.act.gradient_filter import gradients
from probe.analyses.act.result import Calibration
from probe.analyses.act.settings import Settings
from probe.frame.analysis import Facts
from probe.frame.run import identity
from probe.interventions import CalibrateSinks
from tests.probe.every_door import tiny

LAYERS = (0, 1)
draw = random.Random(0)
EXAMPLES = [
    Example(" ".join(f"w{draw.randrange(9, 90)}" for _ in range(12 + index % 3)), (" w5", " w6"), answer, split)
    for split, count in (("calibration", 8), ("test", 4), ("hard", 4))
    for index in range(count)
    for answer in [int(index % 4 == 0)]
]
SHORT = {"examples": EXAMPLES, "candidate_layers": LAYERS, "heads": 3, "draws": 1, "sweep": 4, "beta": 0.98}


@pytest.fixture(scope="module")
def small():
    return tiny("llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("act") / "run"


@pytest.fixture(scope="module")
def found(small, folder) -> Calibration:
    return run(small, out=folder, **SHORT)


@pytest.fixture(scope="module")
def scorer(small) -> Scorer:
    return Scorer(small, [each for each in EXAMPLES if each.split == "calibration"])


def loss(model, scorer, heads, *, beta=0.98) -> float:
    with model.intervene(CalibrateSinks.release(heads, beta=beta)):
        return float(losses(scorer.scores(), scorer.answers).mean())


# --- the run ---------------------------------------------------------------------------------------------------------


def test_every_condition_is_there_on_every_split(found):
    rows = found.conditions
    counted = rows.groupby("split", sort=False)["n"].first().to_dict()
    assert counted == {"calibration": 8, "test": 4, "hard": 4}
    conditions = {act.NONE, act.BIAS, act.BEST, act.BEST_BIAS, act.WORST, act.ALL, act.RANDOM}
    assert {(row.split, row.condition) for row in rows.itertuples()} == {(s, c) for s in counted for c in conditions}
    assert len(rows) == 3 * len(conditions)
    assert (rows["nll_low"] <= rows["nll"]).all() and (rows["nll"] <= rows["nll_high"]).all()
    assert rows["accuracy"].between(0, 1).all() and rows["auc"].between(0, 1).all()


def test_heads_stand_by_their_gradient_and_the_best_are_chosen(found):
    assert len(found.heads) == 4 * len(LAYERS) and found.heads["gradient"].is_monotonic_increasing
    assert [str(head) for head in found.chosen] == found.heads["name"].tolist()[:3]
    assert set(found.heads["layer"]) == set(LAYERS)
    assert found.heads["effect"].notna().sum() == 4 and found.agreement()["heads"] == 4


def test_conditions_are_what_the_interventions_give(found, small, scorer):
    value = found.value
    with torch.no_grad():
        plain = float(losses(scorer.scores(), scorer.answers).mean())
    assert value(act.NONE, "calibration", "nll") == plain
    assert value(act.BEST, "calibration", "nll") == loss(small, scorer, found.chosen)
    worst = [Head(row.layer, row.head) for row in found.heads.tail(3).itertuples()]
    assert value(act.WORST, "calibration", "nll") == pytest.approx(loss(small, scorer, worst), abs=1e-6)
    every = [Head(layer, head) for layer in LAYERS for head in range(4)]
    assert value(act.ALL, "calibration", "nll") == loss(small, scorer, every)
    swept = found.heads.dropna(subset=["effect"]).iloc[0]
    alone = loss(small, scorer, [Head(swept["layer"], swept["head"])])
    assert swept["effect"] == pytest.approx(alone - plain, abs=1e-9)


def test_the_gradient_tells_which_way_the_loss_goes(found, small, scorer):
    """The heads it puts first and last, each calibrated alone: the loss falls and rises by about that much."""
    plain = found.value(act.NONE, "calibration", "nll")
    for place in (0, 1, -2, -1):
        row = found.heads.iloc[place]
        effect = loss(small, scorer, [Head(row["layer"], row["head"])]) - plain
        assert effect / row["gradient"] == pytest.approx(1, abs=0.3), (row["name"], row["gradient"], effect)
    nll = {each: found.value(each, "calibration", "nll") for each in (act.NONE, act.BEST, act.WORST)}
    assert nll[act.BEST] < nll[act.NONE] < nll[act.WORST]


def test_a_label_bias_moves_the_loss_and_not_the_area(found):
    for split in ("calibration", "test", "hard"):
        for biased, without in ((act.BIAS, act.NONE), (act.BEST_BIAS, act.BEST)):
            assert found.value(biased, split, "auc") == found.value(without, split, "auc")
    assert found.value(act.BIAS, "calibration", "nll") < found.value(act.NONE, "calibration", "nll") - 1e-3
    assert found.bias[0] == 0 and abs(found.bias[1]) > 0.05


def test_the_model_comes_out_as_it_went_in(found, small):
    assert all(parameter.requires_grad for parameter in small.hf.parameters())
    assert all(parameter.grad is None for parameter in small.hf.parameters())
    assert small.interventions == ()


def test_what_keeps_all_its_weight_changes_nothing(small):
    """beta = 1: no gradient, and every condition is the model itself."""
    same = run(small, **(SHORT | {"beta": 1.0, "sweep": 1}))
    for split in ("calibration", "test"):
        heads = {same.value(each, split, "nll") for each in (act.NONE, act.BEST, act.WORST, act.ALL, act.RANDOM)}
        assert len(heads) == 1
    assert (same.heads["gradient"] == 0).all() and same.heads["effect"].dropna().tolist() == [0]
    assert "does not help" in same.verdict("test")
    assert same.manifest.options["beta"] == 1.0


# --- folders ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(found, folder, tmp_path):
    assert Calibration.load(folder) == found
    found.save(tmp_path / "copy")
    again = Calibration.load(tmp_path / "copy")
    assert again == found and again.chosen == found.chosen and again.verdict("test") == found.verdict("test")
    assert replace(found, k=4) != found


def test_a_killed_run_continues_to_the_same_result(found, small, folder, tmp_path, monkeypatch):
    """Stopped after its sixth step, with a torn line behind it; the steps that are done are not done again."""
    lines = (folder / "units.jsonl").read_bytes().splitlines(keepends=True)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "config.json").write_bytes((folder / "config.json").read_bytes())
    (killed / "units.jsonl").write_bytes(b"".join(lines[:-6]) + lines[-6][:20])
    ran = []
    scores = Scorer.scores
    monkeypatch.setattr(Scorer, "scores", lambda scorer: ran.append(len(scorer.examples)) or scores(scorer))
    monkeypatch.setattr(analysis, "gradients", lambda *arguments: pytest.fail("the backward pass was done again"))
    seen = []
    again = run(small, out=killed, progress=lambda done, of: seen.append((done, of)), **SHORT)
    assert again == found
    assert len(ran) == 6 and seen[-1] == (len(lines), len(lines)) and seen[0][0] == len(lines) - 5
    assert (killed / "units.jsonl").read_bytes().count(b"\n") == len(lines)
    ran.clear()
    assert run(small, out=killed, **SHORT) == found and ran == []


def test_other_options_may_not_enter_the_folder(found, small, folder):
    with pytest.raises(UsageError, match="made with other options"):
        run(small, out=folder, **(SHORT | {"heads": 2}))


# --- words and figures -----------------------------------------------------------------------------------------------


def told(found: Calibration, noise: tuple[float, ...] = (0.0,) * 4, **nll: float) -> str:
    """The sentence for these mean losses; `noise` is added to the best heads' losses, example by example."""
    spread = dict.fromkeys((act.NONE, act.BIAS), (0.0,) * len(noise)) | {act.BEST: noise}
    names = {"none": act.NONE, "best": act.BEST, "bias": act.BIAS}
    rows = [
        {"condition": names[name], "draw": 0, "split": "test", "accuracy": 0.5, "nll": value, "auc": auc}
        for (name, value), auc in zip(nll.items(), (0.7, 0.75, 0.7), strict=True)
    ]
    each = [
        {key: row[key] for key in ("condition", "draw", "split")} | {"example": example, "loss": row["nll"] + noise}
        for row in rows
        for example, noise in enumerate(spread[row["condition"]])
    ]
    return replace(found, conditions=pd.DataFrame(rows), losses=pd.DataFrame(each)).verdict("test")


def test_the_verdict_says_how_much_a_bias_explains(found):
    assert told(found, none=0.6, best=0.4, bias=0.5) == (
        "test: calibrating the best heads changes the loss from 0.600 to 0.400; a label bias alone reaches 0.500 "
        "(50% of the gain); the AUC changes from 0.700 to 0.750"
    )
    assert "(150% of the gain)" in told(found, none=0.6, best=0.4, bias=0.3)
    assert told(found, none=0.4, best=0.5, bias=0.3) == (
        "test: calibrating the best heads changes the loss from 0.400 to 0.500, so it does not help"
    )
    unsure = told(found, (-1.0, 1.0, -0.5, 0.5), none=0.6, best=0.4, bias=0.5)
    assert "(the gain is within its error)" in unsure and "%" not in unsure


def test_the_table_is_by_split_and_loss(found):
    table = found.to_df()
    assert len(table) == 3 * 7
    assert all(rows["nll"].is_monotonic_increasing for _, rows in table.groupby("split"))


def test_figures_draw_every_condition_and_every_swept_head(found):
    drawn: Any = found.figures()
    assert list(drawn) == ["conditions", "filter"]
    points = [len(trace.x) for trace in drawn["conditions"].figure.data]
    assert sum(points) == 3 * len(found.conditions)
    heads = set(found.heads.dropna(subset=["effect"])["name"])
    assert set(drawn["filter"].figure.data[0].text) == heads
    unswept = replace(found, heads=found.heads.assign(effect=float("nan")))
    assert list(unswept.figures()) == ["conditions"]


# --- options ---------------------------------------------------------------------------------------------------------


def prepared(llama, **changes) -> ActAnalysis:
    made = ActAnalysis(Settings(**changes))
    made.ready(llama)
    return made


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"variant": "published"}, "--variant: expected one of release, paper, got 'published'"),
        ({"candidate_layers": (0, 30)}, r"--candidate-layers: expected layers within 0..29, got \[0, 30\]"),
        ({"heads": 122}, "--heads: expected 1 to 121, half of the candidates, got 122"),
        ({"heads": 10, "candidate_layers": (3, 4)}, "--heads: expected 1 to 9"),
        ({"draws": 0}, "--draws: expected at least 1"),
        ({"beta": 1.5}, "--beta: expected 0 to 1, got 1.5"),
        ({"rule": "loud"}, "--rule: expected one of"),
        ({"examples": []}, "examples: expected a split"),
        ({"examples": EXAMPLES, "task": "task.jsonl"}, "--task: expected a task file or examples, got both"),
    ],
)
def test_options_that_cannot_be_followed_say_why(llama, changes, said):
    with pytest.raises(UsageError, match=said):
        prepared(llama, **changes)


def test_candidates_are_all_layers_but_the_first_two_and_the_last(llama):
    made = prepared(llama)
    assert sorted({head.layer for head in made._candidates}) == list(range(2, 29))
    assert made.settings.heads == 30 and made.settings.variant == "release"
    assert [each.split for each in made._examples] == ["calibration"] * 24 + ["test"] * 36 + ["hard"] * 40
    # one for the gradient, 60 for single heads, and 4 conditions and 5 draws on each of 3 splits
    assert made.expected(Facts.of(llama)) == 1 + 60 + 3 * 9


def test_the_settings_reach_the_intervention():
    heads = [Head(12, 0)]
    assert ActAnalysis(Settings())._calibrating(heads) == CalibrateSinks.release(heads)
    assert ActAnalysis(Settings(variant="paper"))._calibrating(heads) == CalibrateSinks(heads)
    changed = Settings(rule="alpha-times-uniform", min_rows=4, prefix=9, spare="first-token", beta=0.1)
    assert ActAnalysis(changed)._calibrating(heads) == CalibrateSinks(
        heads, rule="alpha_times_uniform", threshold=5.0, min_rows=4, prefix=9, beta=0.1
    )
    own = Settings(rule="alpha-over-n", threshold=0.2)
    assert ActAnalysis(own)._calibrating(heads) == CalibrateSinks.release(heads, rule="alpha_over_n", threshold=0.2)


def test_every_setting_and_every_example_names_another_run_folder(small):
    other = replace(EXAMPLES[0], answer=1 - EXAMPLES[0].answer)
    changed = [
        {"variant": "paper"}, {"beta": 0.5}, {"heads": 2}, {"candidate_layers": (1,), "heads": 2}, {"draws": 2},
        {"sweep": 1}, {"rule": "absolute"}, {"threshold": 0.2}, {"min_rows": 2}, {"spare": "first-token"},
        {"prefix": 5}, {"seed": 1}, {"examples": EXAMPLES[:-1]}, {"examples": [other, *EXAMPLES[1:]]},
    ]  # fmt: skip
    made = [str(identity(prepared(small, **SHORT | each), small)) for each in ({}, *changed)]
    assert len(set(made)) == len(made)


# --- the filter ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_backward_pass_ranks_heads_as_runs_of_each_do(llama):
    """On 8 calibration reviews and 16 random heads; `probe intervene act --sweep 100` measures it on 24 and 100."""
    scorer = Scorer(llama, [each for each in sentiment() if each.split == "calibration"][:8])
    candidates = [Head(layer, head) for layer in range(2, 29) for head in range(9)]
    gradient = gradients(llama, scorer, CalibrateSinks.release(candidates))
    heads = random.Random(0).sample(candidates, 16)
    table = pd.DataFrame(
        [{"gradient": float(gradient[head]), "loss": loss(llama, scorer, [head], beta=0.4)} for head in heads]
    )
    assert table.rank().corr().iloc[0, 1] >= 0.9
    assert gradient[[0, 1, 29]].abs().max() == 0
