"""Path patching against the loop that it replaces: the same numbers, in a tenth of the time at most."""

from __future__ import annotations

import pytest

from probe.analyses.circuits.tasks.registry import task
from probe.benchmarks.patching import Comparison, compare


@pytest.mark.slow
def test_the_loop_takes_ten_times_as_long_and_gives_the_same_numbers(llama):
    found = compare(llama, task(llama, "ioi", prompts=12).pairs(llama), every=54)
    assert found.difference < 1e-4 and found.times > 10, str(found)
    assert (found.heads, found.prompts, found.looped) == (270, 12, 5)


def test_a_comparison_says_what_it_measured():
    text = str(Comparison(heads=270, prompts=40, ours=10.0, loop=250.0, looped=27, difference=2e-5))
    assert "10.0 s" in text and "250 s, 25 times as long (27 heads run)" in text and "2.0e-05" in text
