from __future__ import annotations

from probe.analyses.heads.costs import QUESTION, cost, stretches
from probe.analyses.heads.needle_runs import Questions
from probe.analyses.heads.pruning_conditions import Conditions
from probe.analyses.heads.validation_samples import Check, held_out
from probe.analyses.texts.haystacks import language_reference
from probe.frame.speed import Speed

SPEED = Speed(per_operation=1e-11, per_step=0.03, per_row=0.01)


def questions(**changes):
    return Questions(**{"haystack": language_reference(), "lengths": (300,), "depths": (10, 50, 90), **changes})


def test_tokens_count_shared_prose_once(llama):
    asked = questions(depths=(10, 90), samples=2)
    tokens = 2 * (270 + 2 * (270 + QUESTION) + 2 * (30 + QUESTION))
    assert sum(new for new, _ in stretches(asked)) == tokens
    estimate = cost(llama, SPEED, questions=asked, kinds=())
    assert [name for name, _ in estimate.parts] == [f"8 needles, {tokens:,} tokens to read"]


def test_every_part_that_is_asked_for_costs_something(llama):
    bare = cost(llama, SPEED, questions=None, kinds=())
    assert bare.parts == () and bare.seconds == bare.plain == 0 and bare.passes is None
    for kind in ("induction", "copying", "sink"):
        assert cost(llama, SPEED, questions=None, kinds=(kind,)).seconds > 0
    heads = tuple(sorted(llama.heads()))
    few, many = (
        cost(llama, SPEED, questions=None, kinds=(), check=Check(
            questions=held_out(language_reference()), conditions=Conditions(heads, ks, fills), phase="decode"
        ))
        for ks, fills in (((5, 10), ("zero",)), ((5, 10, 20, 30), ("zero", "uniform")))
    )  # fmt: skip
    assert many.seconds > 1.5 * few.seconds > 0 and many.plain == few.plain > 0
    assert many.memory > bare.memory + 15 * 2 * 30 * 3 * 64 * 384 * 4  # a cache for each row
