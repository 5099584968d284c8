"""One repetition: what its time and memory are of."""

import os
import subprocess
import sys
import time

import pytest
import torch

from probe.benchmarks.crew import WEIGHED
from probe.benchmarks.kernel_cases import Work
from probe.benchmarks.memory import STATUS, Meter
from probe.benchmarks.worker import answer, repetition

CPU = torch.device("cpu")
SIZE = 100 * 10**6


class Pipe:
    """A pipe that holds its questions already, and keeps the answers."""

    def __init__(self, *questions):
        self._questions, self.answers = list(questions), []

    def recv(self):
        if not self._questions:
            raise EOFError
        return self._questions.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def test_seconds_are_of_one_call():
    calls = []

    def call():
        calls.append(time.sleep(0.03))

    found = repetition(Work(call=call), 4, Meter(CPU), CPU)
    assert len(calls) == 4 and 0.03 <= found["seconds"] < 0.06


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="counted from the start of the process on this system")
def test_a_result_is_gone_before_the_next_is_made():
    """In a process of its own, as every case is weighed: what other tests have freed can serve here."""
    measure = f"""
import torch
from probe.benchmarks.kernel_cases import Work
from probe.benchmarks.memory import Meter
from probe.benchmarks.worker import repetition
cpu = torch.device("cpu")
found = repetition(Work(call=lambda: torch.ones({SIZE}, dtype=torch.uint8)), 3, Meter(cpu), cpu)
print(found["peak"] - found["held"])
"""
    told = subprocess.run(
        [sys.executable, "-c", measure], env=os.environ | WEIGHED, capture_output=True, text=True, check=True
    )
    assert 0.95 * SIZE < int(told.stdout) < 1.5 * SIZE


def test_the_first_result_is_checked_and_no_other():
    checked, results = [], iter("abcd")
    work = Work(call=lambda: next(results), check=checked.append)
    pipe = Pipe(1, 2, 1)
    with pytest.raises(EOFError):
        answer(pipe, work, Meter(CPU), CPU)
    assert checked == ["a"]
    assert len(pipe.answers) == 3 and all(found.keys() == {"seconds", "held", "peak"} for found in pipe.answers)


def test_a_result_that_is_wrong_ends_the_case():
    def check(result):
        raise ValueError(f"expected maps, got {result}")

    with pytest.raises(ValueError, match="expected maps, got 1"):
        answer(Pipe(1), Work(call=lambda: 1, check=check), Meter(CPU), CPU)
