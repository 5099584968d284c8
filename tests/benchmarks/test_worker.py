"""One repetition: what its time and memory are of."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from probe.benchmarks.crew import WEIGHED
from probe.benchmarks.kernel_cases import Work
from probe.benchmarks.memory import STATUS, Meter
from probe.benchmarks.worker import repetition, serve

CPU = torch.device("cpu")
SIZE = 100 * 10**6


def test_seconds_are_of_one_call():
    calls = []

    def call():
        calls.append(time.sleep(0.03))

    found = repetition(Work(call=call), 4, Meter(CPU), CPU)
    assert len(calls) == 4 and 0.03 <= found["seconds"] < 0.06


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
    checked, answers = [], io.StringIO()
    results = iter("abcd")
    work = Work(call=lambda: next(results), check=checked.append)
    serve(work, ['{"calls": 1}', '{"calls": 2}', '{"calls": 1}'], answers, Meter(CPU), CPU)
    assert checked == ["a"]
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(lines) == 3 and all(line.keys() == {"seconds", "held", "peak"} for line in lines)


def test_a_result_that_is_wrong_ends_the_case():
    def check(result):
        raise ValueError(f"expected maps, got {result}")

    with pytest.raises(ValueError, match="expected maps, got 1"):
        serve(Work(call=lambda: 1, check=check), ['{"calls": 1}'], io.StringIO(), Meter(CPU), CPU)
