"""Tiles and pooled maps against the reference, with blocks so small that every shape needs several."""

from __future__ import annotations

import pytest
import torch

from probe.kernels import maps, reference
from probe.kernels.contract import Mask, Request, Scoring


@pytest.mark.parametrize("budget", [600, 20_000])
@pytest.mark.parametrize("mask", [Mask(first_query=30), Mask(causal=False), Mask(window=33), Mask(first_query=-9)])
def test_pool_and_tile_equal_the_reference(poisoned_empty, sample, mask, budget):
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=270, keys=300)
    scoring = Scoring(mask, 0.35, 7.0)
    _, found = reference.attend(query, key, value, sinks=None, request=Request(lse=True), scoring=scoring)
    lse = found.lse.float()
    pooled = maps.pool(query, key, lse, shape=(40, 25), budget=budget, scoring=scoring)
    torch.testing.assert_close(
        pooled.double(), reference.pool(query, key, lse, shape=(40, 25), scoring=scoring), atol=1e-6, rtol=1e-5
    )
    for rows, cols in ((range(270), range(300)), (range(120, 265, 5), range(7, 290, 2)), (range(3, 4), range(3, 5))):
        mine = maps.tile(query, key, lse, rows=rows, cols=cols, scoring=scoring)
        exact = reference.tile(query, key, lse, rows=rows, cols=cols, scoring=scoring)
        torch.testing.assert_close(mine.double(), exact, atol=1e-6, rtol=1e-5)
