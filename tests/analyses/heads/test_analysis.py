"""Units of `probe heads`: which are planned when, on records written by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from probe import Head
from probe.analyses.heads.analysis import HeadAnalysis
from probe.analyses.heads.settings import Settings
from probe.errors import ProbeError, UsageError
from tests.analyses.heads.examples import FACTS, needle, results

LARGE = replace(FACTS, n_layers=8, n_heads=10, n_kv_heads=5)
HEADS = [Head(layer, head) for layer in range(8) for head in range(10)]
STEADY = {Head(*divmod(index, 8)): count for index, count in enumerate([10, 9, 8, 7, 6, 5, 4, 3, 2, 1])}


def analysis(**changes) -> HeadAnalysis:
    return HeadAnalysis(Settings(**{"lengths": (300,), **changes}))


def names(found: HeadAnalysis, records: dict, facts=FACTS) -> list[str]:
    return [unit.name for unit in found.plan(facts, records)]


def asked(count: int) -> dict:
    return {f"needle {index}": needle(index, STEADY) for index in range(count)}


def test_needles_come_first_then_the_other_scores():
    found = analysis()
    needles = [f"needle {index}" for index in range(6)]
    assert names(found, {}) == names(found, asked(5)) == needles
    assert names(found, asked(6)) == [*needles, "patterns", "copying", "sink"]
    assert found.expected(FACTS) == 9
    assert names(analysis(kinds=("duplicate-token",)), {}) == ["patterns"]


def test_a_validation_knows_its_heads_once_the_needles_are_there():
    found = analysis(kinds=("retrieval",), validate=True)
    assert names(found, {}, LARGE) == [f"needle {index}" for index in range(6)]
    units = found.plan(LARGE, asked(6))[6:]
    assert len(units) == 20 + 20 + 6 and found.expected(LARGE) == 6 + len(units)
    assert units[0].name == "validation zero decode, needle 0"
    assert units[0].arguments["best"][:3] == [[0, 0], [0, 1], [0, 2]] and len(units[0].arguments["best"]) == 30
    other = analysis(kinds=("retrieval",), validate=True, fills=("zero",), phase="all").plan(LARGE, asked(6))[6:]
    assert not {unit.name for unit in units} & {unit.name for unit in other}  # another validation only adds units
    fewer = [unit.name for unit in analysis(kinds=("retrieval",), validate=True, held_out=4).plan(LARGE, asked(6))[6:]]
    assert fewer[:4] == [f"validation zero decode, needle {index}" for index in (0, 5, 10, 15)]  # of both lengths
    assert len(fewer) == 4 + 4 + 6 and set(fewer) < {unit.name for unit in units}


def test_heads_of_ones_own_are_validated_without_needles():
    ranked = [Head(2, 3), Head(1, 1)]
    found = analysis(kinds=("copying",), validate=True, ranked=ranked)
    units = found.plan(LARGE, {})
    assert units[0].name == "copying" and units[1].arguments["best"][:3] == [[2, 3], [1, 1], [0, 0]]
    assert found.inputs()["ranked"] == [[2, 3], [1, 1]]


def test_a_stable_ranking_ends_the_questions():
    """The seventh retrieved needle is the first after which six rankings in a row can agree."""
    found = analysis(samples=4, until_stable=True, kinds=("retrieval",))
    assert found.expected(FACTS) == 24
    for count in range(7):
        assert names(found, asked(count)) == [f"needle {index}" for index in range(count + 1)]
    assert names(found, asked(7)) == [f"needle {index}" for index in range(7)]


def test_until_stable_asks_on_while_the_ranking_changes():
    found = analysis(samples=2, until_stable=True, kinds=("retrieval",))
    records = {}
    for index in range(11):
        drawn = random.Random(index)
        records[f"needle {index}"] = needle(index, {head: drawn.randint(0, 10) for head in HEADS})
        assert names(found, records, LARGE)[-1] == f"needle {index + 1}"


def test_a_model_that_retrieves_nothing_is_an_error_before_anything_else_is_measured():
    lost = needle(0, {}) | {"success": False, "answer": "qwpo", "generated": " Blue.\n"}
    with pytest.raises(ProbeError, match=r"retrieved none of 6 needles.*expected 'qwpo', got 'Blue.'") as error:
        analysis().plan(FACTS, {f"needle {index}": lost for index in range(6)})
    assert "\n" not in str(error.value)


def test_a_model_with_too_few_heads_cannot_be_validated():
    few = replace(FACTS, n_layers=1)
    with pytest.raises(UsageError, match="--validate needs 10 heads, half of them as a control; got 8"):
        analysis(validate=True).expected(few)


def test_a_saved_comparison_holds_while_the_other_run_has_the_scores_that_it_shows():
    made, found = analysis(), results()[0]
    alone = replace(found, comparison=None)
    assert made.is_current(alone) and not made.is_current(found)
    made._other = found.catalogue
    assert made.is_current(found) and not made.is_current(alone)
    made._other = replace(found.catalogue, scores={"retrieval": found.catalogue.scores["retrieval"] + 0.1})
    assert not made.is_current(found)
