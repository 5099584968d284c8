"""Attribution against exact patching, on IOI of the packaged model."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.circuits.tasks.registry import task
from probe.heads import Head
from probe.patching.attribution import attribution
from probe.patching.places import patch


@pytest.mark.slow
def test_attribution_misses_the_inhibition_head_that_exact_patching_finds_first(llama):
    """L20H0 acts through attention that is saturated: of 40 % of the gap the clean gradient sees a fifth."""
    pairs, head = task(llama, "ioi", prompts=8).pairs(llama), Head(20, 0)
    exact, clean = patch(llama, pairs, llama.heads()), attribution(llama, pairs)
    between = attribution(llama, pairs, steps=5)
    assert exact.top(1) == [head] and 33 < exact.of(head) < 52
    assert clean.of(head) < 14 and clean.of(head) + 8 < between.of(head) < 32

    def pearson(found) -> float:
        return float(torch.corrcoef(torch.stack([exact.normalised, found.normalised]))[0, 1])

    assert 0.8 < pearson(clean) < 0.94 < pearson(between) < 0.99
    others = [place for place, each in enumerate(exact.nodes) if each != head]
    # all other heads it ranks well
    assert float(torch.corrcoef(torch.stack([exact.normalised[others], clean.normalised[others]]))[0, 1]) > 0.97
