"""What a process holds, at its peak and afterwards."""

import pytest
import torch

from probe.benchmarks.memory import STATUS, Meter, available

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="counted from the start of the process on this system")
SIZE = 200 * 10**6


def test_the_peak_is_of_what_came_after_the_restart():
    meter = Meter(torch.device("cpu"))
    ground = meter.settle()
    meter.restart()
    block = torch.ones(SIZE, dtype=torch.uint8)
    assert SIZE * 0.95 < meter.held() - ground < SIZE * 1.2
    del block
    assert SIZE * 0.95 < meter.peak() - ground < SIZE * 1.2
    assert meter.settle() < ground + SIZE * 0.2
    meter.restart()
    assert meter.peak() < ground + SIZE * 0.2


def test_memory_in_use_is_not_available():
    before = available()
    block = torch.ones(SIZE, dtype=torch.uint8)
    after = available()
    assert before is not None and after is not None and 0 < after < before + SIZE  # other programs come and go
    del block
