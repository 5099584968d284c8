"""What is measured, with what it takes turns."""

from dataclasses import asdict

import pytest

from probe.benchmarks.figures import look
from probe.benchmarks.plan import Settings, groups
from probe.errors import UsageError


def plan(implementations=("native", "blocked"), **options):
    return groups(Settings(threads=1, **{"lengths": (64, 128), "repeats": 7} | options), implementations)


def test_every_length_has_one_group_of_kernel_cases_plain_attention_first():
    planned = plan(suite="kernels")
    assert [group.name for group in planned] == ["kernels 64", "kernels 128"]
    cases = planned[0].cases
    assert cases[0].method == "sdpa" and len({case.name for case in cases}) == len(cases)
    ours = [(case.implementation, case.statistics) for case in cases if case.method == "attend"]
    assert ours == [(name, kind) for name in ("native", "blocked") for kind in ("rows", "columns", "sets")]


def test_a_peer_takes_turns_with_a_plain_pass_of_its_own_for_at_most_three_rounds():
    planned = plan(suite="model", lengths=(64,))
    assert [group.name for group in planned] == ["model 64", "model 64 eager", "model 64 bridge", "model 64 nnsight"]
    assert all(group.cases[0].method == "plain" for group in planned)
    others = [[case.method for case in group.cases[1:]] for group in planned]
    assert others == [["stats", "act"], ["eager"], ["bridge"], ["nnsight"]]
    assert [(group.rounds, group.peer) for group in planned] == [(7, False), (3, True), (3, True), (3, True)]
    assert [group.rounds for group in plan(suite="model", lengths=(64,), repeats=2)] == [2, 2, 2, 2]


def test_cases_can_be_chosen_and_the_plain_one_stays():
    planned = plan(suite="all", only=("blocked", "eager"), lengths=(64,))
    assert [[case.method for case in group.cases] for group in planned] == [
        ["sdpa"] + 3 * ["attend"],
        ["plain", "eager"],
    ]
    assert {case.implementation for case in planned[0].cases[1:]} == {"blocked"}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"only": ("block",)}, "--case: expected one of .*blocked.*, got block"),
        ({"only": ("eager",)}, "--case eager leaves nothing of --suite kernels"),
        ({"heads": 4, "kv_heads": 3}, "--heads must be a multiple of --kv-heads, got 4 and 3"),
        ({"lengths": (1,)}, "--lengths"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        plan(suite="kernels", **options)


def test_every_case_has_a_look_of_its_own():
    for suite in ("kernels", "model"):
        cases = list(dict.fromkeys(case for group in plan(suite=suite) for case in group.cases))
        looks = [look(asdict(case), ["native", "blocked"]) for case in cases]
        doubles = {case.name for case, own in zip(cases, looks, strict=True) if looks.count(own) > 1}
        assert doubles <= {"flex_attention", "flex_attention with lse"} and len(cases) > 5
