from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from probe.analyses.heads import validation_samples
from probe.analyses.heads.needle_runs import Reader
from probe.analyses.heads.pruning_conditions import Condition, Conditions
from probe.analyses.heads.validation import Validation, _details, _summary, ranking, validation
from probe.analyses.heads.validation_samples import Check, held_out
from probe.analyses.texts.closed_book import FACTS, Fact
from probe.analyses.texts.haystacks import language_reference
from probe.errors import UsageError
from probe.frame.analysis import Facts
from probe.frame.tables import Table
from probe.heads import Head
from probe.saving.results import Result
from tests.analyses.heads.examples import MANIFEST

# the ten best heads of SmolLM2-135M-Instruct, from a run with the default options
TOP_TEN = [
    Head(18, 6), Head(18, 7), Head(17, 3), Head(17, 4), Head(23, 2), Head(20, 6), Head(21, 8), Head(23, 7), Head(22, 7),
    Head(24, 4),
]  # fmt: skip
QUESTIONS = held_out(language_reference(), lengths=(300,), depths=(20, 50, 80))


def check_of(ranked, **changes) -> Check:
    """A validation of six held-out needles, ten facts and three passages under seven prunings."""
    conditions = Conditions(tuple(ranked), **{"ks": (5, 10), "fills": ("zero",), "seed": 1, **changes})
    return Check(questions=QUESTIONS, conditions=conditions, phase="decode", passages=3, passage_tokens=96)


@pytest.fixture(scope="module")
def checked(llama):
    check, reader = check_of(ranking(TOP_TEN, Facts.of(llama))), Reader(QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_samples, "FACTS", FACTS[:10])
        records = [check.measure(llama, reader, name).data for name in check.samples()]
    return validation(records, check.conditions, "decode", MANIFEST)


def test_an_answer_must_be_a_whole_word():
    fact = Fact("Which animal?", ("lion", "H2O"))
    assert fact.answered("It is a Lion.")
    assert fact.answered("water is h2o!")
    assert not fact.answered("There are millions.")
    assert len(FACTS) == 20


@pytest.mark.slow
def test_without_its_retrieval_heads_the_model_stops_retrieving(checked):
    found = checked
    assert found.value("needles", "none") == 1.0
    assert found.value("needles", "top", 5, "zero") <= 0.2
    assert found.value("needles", "top", 10, "zero") == 0.0
    assert found.value("needles", "random", 10, "zero") >= 0.8


@pytest.mark.slow
def test_without_them_it_goes_on_answering_from_its_weights(checked):
    found = checked
    base = found.value("closed book", "none")
    assert base >= 0.6
    assert found.value("closed book", "top", 10, "zero") >= base - 0.1
    assert abs(found.row("prose", "top", 10, "zero")["rise"]) < 0.15


@pytest.mark.slow
def test_details_say_what_was_pruned_and_written(checked):
    found = checked
    details = found.details
    assert len(details) == (6 + 10 + 3) * 7
    top = details[(details["group"] == "top") & (details["k"] == 10)]
    assert set(top["heads"]) == {" ".join(map(str, TOP_TEN))}
    random = details[(details["group"] == "random") & (details["k"] == 10) & (details["task"] == "needles")]
    assert random["heads"].nunique() == 6  # redrawn for every sample
    unpruned = details[(details["group"] == "none") & (details["task"] == "needles")]
    assert all(row.answer.split()[-1] in row.generated for row in unpruned.itertuples())
    with pytest.raises(KeyError, match="no condition needles, top, 5, uniform"):
        found.value("needles", "top", 5, "uniform")


@pytest.mark.slow
def test_the_claims_of_the_paper_hold(checked):
    verdicts = {finding.name: finding.verdict for finding in checked.findings()}
    assert verdicts == {"necessary": "holds", "specific": "holds", "official mask": "not applicable"}


@pytest.mark.slow
def test_a_sample_does_not_depend_on_those_before_it_and_the_result_survives_its_folder(checked, llama, tmp_path):
    assert Result.load(checked.save(tmp_path)) == checked
    check = check_of(ranking(TOP_TEN, Facts.of(llama)))
    for name in ("needle 5", "fact 3", "passage 2"):
        measured = check.measure(llama, Reader(QUESTIONS), name)
        rows = checked.details[checked.details["sample"] == name]
        assert measured.data["values"] == rows["value"].tolist()
        assert measured.data["generated"] == rows["generated"].tolist()
        assert [" ".join(heads) for heads in measured.data["heads"]] == rows["heads"].tolist()
        unpruned = llama.tokenizer.encode(rows["generated"].iloc[0])
        assert measured.prompts[0].written == 0 if name == "passage 2" else measured.prompts[0].written >= len(unpruned)


def by_hand(values: dict[Condition, list[float]], task: str) -> pd.DataFrame:
    conditions = Conditions(tuple(Head(layer, head) for layer in range(4) for head in range(4)), (2,), ("zero",))
    done = [
        {
            "task": task,
            "sample": f"{task} {index}",
            "answer": "",
            "values": [values[condition][index] for condition in conditions.all],
            "generated": [""] * len(conditions.all),
            "heads": [[str(head) for head in heads] for heads in conditions.draw(str(index)).values()],
        }
        for index in range(4)
    ]
    return pd.DataFrame(list(_details(done, conditions)))


NONE, TOP, RANDOM, SAME = (
    Condition("none", 0, None), Condition("top", 2, "zero"), Condition("random", 2, "zero"),
    Condition("same layers", 2, "zero"),
)  # fmt: skip


def test_accuracy_is_the_share_of_successes_with_wilsons_interval():
    details = by_hand({NONE: [1, 1, 1, 1], TOP: [0, 0, 0, 1], RANDOM: [1, 1, 0, 1], SAME: [1, 0, 1, 0]}, "needles")
    row = _summary("needles", TOP, details, seed=0)
    assert (row["value"], row["samples"], row["heads"]) == (0.25, 4, 2.0)
    assert (row["low"], row["high"]) == (pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4))
    assert _summary("needles", NONE, details, seed=0)["heads"] == 0
    assert _summary("needles", RANDOM, details, seed=0)["value"] == 0.75


def test_the_rise_of_a_loss_is_paired():
    base = [1.0, 2.0, 3.0, 4.0]  # far apart, yet the rise is the same everywhere
    details = by_hand({NONE: base, TOP: [x + 0.5 for x in base], RANDOM: base, SAME: base}, "prose")
    row = _summary("prose", TOP, details, seed=0)
    assert row["value"] == 3.0
    assert row["low"] < 2.6 < 3.4 < row["high"]
    assert (row["rise"], row["rise_low"], row["rise_high"]) == (0.5, 0.5, 0.5)
    assert _summary("prose", RANDOM, details, seed=0)["rise"] == 0.0


def test_wrong_options_are_refused_before_anything_runs():
    ranked = [Head(layer, head) for layer in range(4) for head in range(8)]
    for changes, message in (({"ks": (5, 20)}, "needs the same number of others"), ({"fills": ("mean",)}, "--fill")):
        with pytest.raises(UsageError, match=message):
            check_of(ranked, **changes)
    for changes, message in (({"phase": "prefill"}, "--phase"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(UsageError, match=message):
            replace(check_of(ranked), **changes)


def test_scores_of_another_model_are_refused():
    facts = Facts(name="llama", n_layers=30, n_heads=9)
    with pytest.raises(UsageError, match=r"30 layers x 9 heads of llama, got \[12, 12\]"):
        ranking(torch.rand(12, 12), facts)
    with pytest.raises(UsageError, match="got L40H0"):
        ranking([Head(40, 0)], facts)


def cells(table: Table) -> list[list[str]]:
    return [[column.cell(row) for column in table.columns] for row in table.rows.to_dict("records")]


@pytest.mark.parametrize("phase, words", [("decode", "while answering"), ("all", "while reading and answering")])
def test_every_condition_stands_in_its_place(phase, words):
    """With k = 5 and zero output only; a cell's value is its place in the table, over ten."""
    rows, place = [], 0
    for task in ("needles", "closed book", "prose"):
        for group in ("none", "top", "random", "same layers"):
            k, fill = (0, None) if group == "none" else (5, "zero")
            low, high = (place - 1) / 10, (place + 1) / 10
            row = {"task": task, "group": group, "k": k, "fill": fill, "value": place / 10, "low": low, "high": high}
            rows.append(row | {"rise": 0.0, "rise_low": 0.0, "rise_high": 0.0, "samples": 3, "heads": float(k)})
            place += 1
    found = Validation(
        manifest=MANIFEST, conditions=pd.DataFrame(rows), details=pd.DataFrame({"generated": ["42"]}),
        ranked=(Head(1, 2),), ks=(5,), fills=("zero",), phase=phase,
    )  # fmt: skip
    tables = found.tables()
    assert tables["needles"].title == f"Held-out needles answered, heads pruned {words}:"
    assert [column.header for column in tables["needles"].columns] == ["heads", "fill", "top", "random", "same layers"]
    assert cells(tables["needles"]) == [
        ["none", "", ".00 [-.10, .10]", "", ""],
        ["5", "zero", ".10 [.00, .20]", ".20 [.10, .30]", ".30 [.20, .40]"],
    ]
    assert tables["closed book"].title.startswith("Closed-book")
    assert cells(tables["closed book"])[1][2].startswith(".50")
    assert tables["prose"].title == "Loss on prose in nats per token, heads pruned everywhere:"
    assert cells(tables["prose"])[1][2:] == [".90 [.80, 1.00]", "1.00 [.90, 1.10]", "1.10 [1.00, 1.20]"]
    assert tables["prose"].rows["top rise"].tolist() == [0.0, 0.0] and "top rise" not in tables["needles"].rows
