"""Groups measured for real, in processes: whose turn it is, and what becomes of a case that cannot go on."""

import os
import signal
from dataclasses import replace

import pytest

from probe.benchmarks import crew
from probe.benchmarks.crew import Measured, Worker, explanation, measure
from probe.benchmarks.plan import DENSE, SDPA, Case, Group, Settings

SETTINGS = Settings(threads=1, repeats=3, memory_limit=700 * 10**6)
ROWS = Case(name="rows", method="attend", implementation="blocked", statistics="rows")
WRONG = Case(name="wrong", method="nothing")


@pytest.fixture(scope="module")
def measured():
    """Two cases that go well, one that needs too much memory and one that fails, at 4,096 tokens."""
    turns = []
    group = Group(suite="kernels", length=4096, cases=(SDPA, DENSE, ROWS, WRONG), rounds=3)
    cases, times = measure(group, SETTINGS, turn=turns.append)
    return {case["name"]: case for case in cases}, times, turns


@pytest.mark.slow
def test_cases_take_turns(measured):
    cases, times, turns = measured
    assert [(time["round"], time["case"]) for time in times] == [
        (number, name) for number in (1, 2, 3) for name in ("sdpa alone", "rows")
    ]
    starts = [time["start"] for time in times]
    ends = [time["start"] + time["seconds"] * cases[time["case"]]["calls"] for time in times]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))  # never two at once
    assert turns == list(range(1, 21))


@pytest.mark.slow
def test_medians_and_quartiles_are_of_the_counted_rounds_and_memory_is_its_own(measured):
    cases, times, _ = measured
    for name in ("sdpa alone", "rows"):
        taken = sorted(time["seconds"] for time in times if time["case"] == name)
        case = cases[name]
        assert (case["status"], case["rounds"], case["seconds"]) == ("ok", 3, taken[1])
        assert case["low"] == pytest.approx((taken[0] + taken[1]) / 2)
        assert case["high"] == pytest.approx((taken[1] + taken[2]) / 2)
        assert case["growth"] == case["peak"] - case["held"]
    output = 9 * 4096 * 64 * 4
    assert cases["sdpa alone"]["growth"] > 0.9 * output
    assert cases["rows"]["growth"] < 10 * output  # one map alone takes 64 times the output


@pytest.mark.slow
def test_running_out_of_memory_is_a_result(measured):
    dense = measured[0][DENSE.name]
    assert (dense["status"], dense["reason"]) == ("out of memory", "out of memory at 0.7 GB")
    assert dense["seconds"] is None and dense["peak"] is None and dense["rounds"] == 0


@pytest.mark.slow
def test_an_error_is_told_in_its_own_words(measured):
    wrong = measured[0]["wrong"]
    assert (wrong["status"], wrong["reason"]) == (
        "error", "ValueError: expected a method of a kernel case, got 'nothing'",
    )  # fmt: skip


@pytest.mark.slow
def test_a_peer_that_takes_too_long_ends_its_group():
    group = Group(suite="kernels", length=8192, cases=(SDPA, DENSE), rounds=2, peer=True)
    cases, times = measure(group, replace(SETTINGS, timeout=0.05, memory_limit=20 * 10**9))
    assert [(case["name"], case["status"], case["reason"]) for case in cases] == [
        (DENSE.name, "timeout", "no answer within 0.05 s")
    ]
    assert times == []


def test_no_process_outlives_its_worker_and_none_ends_by_an_interruption():
    group = Group(suite="kernels", length=64, cases=(SDPA,), rounds=1)
    with Worker(Measured(SDPA), group, SETTINGS) as worker:
        process = worker.process
        os.kill(process.pid, signal.SIGINT)
        process.join(0.5)
        assert process.is_alive()
    assert process.exitcode is not None


def test_a_case_without_times_has_none():
    record = Measured(SDPA).record()
    assert record["seconds"] is None and record["low"] is None and record["growth"] is None


def test_the_exception_is_found_among_notes():
    lines = ["Traceback (most recent call last):", "a.b.InductorError: LoweringException: no", "args[0]: x", "note: y"]
    assert explanation(lines) == "a.b.InductorError: LoweringException: no"
    assert explanation(["Killed"]) == "Killed" and explanation([]) == ""


def test_calls_fill_a_tenth_of_a_second_and_memory_is_of_a_fresh_process(monkeypatch):
    """Answers by hand: 20 ms a call, and another peak each time."""
    asked = []

    class Scripted(Worker):
        def __init__(self, found, group, settings, environment=None):
            self.found, self.weighs = found, bool(environment)

        def prepare(self):
            asked.append("weigh" if self.weighs else "time")
            return {"held": 100 if self.weighs else 90, "facts": {"kind": "scripted"}}

        def repeat(self, calls):
            asked.append(calls)
            return {"seconds": 0.02, "held": 120, "peak": 150 if self.weighs else 999}

        def __exit__(self, *_):
            asked.append("closed")

    monkeypatch.setattr(crew, "Worker", Scripted)
    (found,), times = measure(Group(suite="kernels", length=64, cases=(SDPA,), rounds=3), SETTINGS)
    assert asked == ["time", 1, 3, 5, 5, 5, "closed", "weigh", 1, "closed"] and len(times) == 3
    assert (found["held"], found["peak"], found["growth"], found["calls"]) == (100, 150, 50, 5)
    assert found["seconds"] == 0.02 and found["facts"] == '{"kind": "scripted"}'
