"""Blocks: every visible pair once, little else, and no more scores than allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probe.kernels import blocks as module
from probe.kernels.blocks import HIDDEN, Block, Hiding, blocks, grouped, may_be_blind, visible_cols
from probe.kernels.contract import Mask

MASKS = [
    Mask(),
    Mask(causal=False),
    Mask(window=5),
    Mask(window=5, causal=False),
    Mask(first_query=11),
    Mask(first_query=40, window=9, first_key=25),
    Mask(first_query=0, first_key=8),
    Mask(first_query=60, window=9),
]


def by_position(mask: Mask, queries: int, keys: int):
    i = torch.arange(queries)[:, None] + mask.first_query
    j = torch.arange(keys) + mask.first_key
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if mask.causal:
        seen &= j <= i
    if mask.window is not None:
        seen &= i - j < mask.window
    return seen


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("most", [1, 100, 700, 10**6])
def test_blocks_cover_what_is_visible_and_each_row_once(mask, most):
    query, key = torch.zeros(3, 4, 37, 8), torch.zeros(3, 2, 50, 8)
    rows = torch.zeros(3, 2, 37, dtype=torch.int64)
    covered = torch.zeros(3, 2, 37, 50, dtype=torch.bool)
    for block in blocks(query, key, mask, most=most):
        rows[block.batch, block.kv_heads, block.rows] += 1
        covered[block.batch, block.kv_heads, block.rows, block.cols] = True
    assert (rows == 1).all()
    assert not (by_position(mask, 37, 50) & ~covered).any()


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=False), Mask(window=64)])
@pytest.mark.parametrize("most", [3 * 700, 20_000, 100_000, 10**7])
def test_blocks_hold_no_more_than_allowed_and_not_much_less(mask, most):
    query, key = torch.zeros(2, 9, 700, 8), torch.zeros(2, 3, 700, 8)
    sizes = []
    for block in blocks(query, key, mask, most=most):
        spans = (block.batch, block.kv_heads, block.rows, block.cols)
        batch, kv_heads, height, width = (span.stop - span.start for span in spans)
        assert height <= module.MOST_ROWS
        sizes.append(batch * kv_heads * 3 * height * width)
    whole = 2 * 9 * 128 * 700
    assert max(sizes) <= most
    assert max(sizes) >= min(most, whole) / 5


@pytest.mark.parametrize(("enough", "heads"), [(1, 1), (300 * 128, 1), (300 * 128 + 1, 2), (10**9, 6)])
def test_blocks_take_in_heads_until_they_are_large_enough(enough, heads):
    """Two KV heads of a single query head and 300 keys, in three texts."""
    query = torch.zeros(3, 2, 300, 8)
    for block in blocks(query, query, Mask(), most=10**9, enough=enough):
        batch, kv_heads = (span.stop - span.start for span in (block.batch, block.kv_heads))
        assert batch * kv_heads == heads


@pytest.mark.parametrize(
    ("mask", "queries", "height"),
    [(Mask(), 700, 128), (Mask(), 900, 256), (Mask(causal=False), 700, 256), (Mask(window=64), 700, 128)],
)
def test_blocks_are_lower_where_much_would_lie_above_the_diagonal(mask, queries, height):
    query = torch.zeros(1, 1, queries, 8)
    assert max(block.rows.stop - block.rows.start for block in blocks(query, query, mask, most=10**9)) == height


def test_the_largest_block_comes_first():
    query = torch.zeros(1, 1, 512, 8)
    assert [block.cols.stop for block in blocks(query, query, Mask(), most=10**9)] == [512, 384, 256, 128]


@pytest.mark.parametrize("mask", MASKS)
def test_visible_cols_are_the_tightest(mask):
    for start, stop in ((0, 1), (0, 37), (5, 9), (30, 37)):
        cols = visible_cols(start, stop, 50, mask)
        seen = by_position(mask, 37, 50)[start:stop].any(0).nonzero()[:, 0].tolist()
        assert list(range(50))[cols] == (list(range(seen[0], seen[-1] + 1)) if seen else [])


@pytest.mark.parametrize("mask", MASKS)
def test_hiding_hides_what_is_not_visible_and_nothing_else(mask):
    """Over blocks of every kind, scores of either sign, and with padding and pairs on top."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(2, 50, generator=generator) > 0.2
    pairs = torch.rand(1, 4, 37, 50, generator=generator) > 0.2
    for extra in ({}, {"keys": kept}, {"pairs": pairs}, {"keys": kept, "pairs": pairs}):
        full = replace(mask, **extra)
        seen = by_position(mask, 37, 50).expand(2, 4, -1, -1)
        seen = seen & kept[:, None, None] if "keys" in extra else seen
        seen = (seen & pairs if "pairs" in extra else seen).unflatten(1, (2, 2))
        hiding = Hiding(full, 16, dtype=torch.float32, device=torch.device("cpu"))
        for start in range(0, 37, 16):
            stop = min(start + 16, 37)
            block = Block(slice(0, 2), slice(0, 2), slice(start, stop), visible_cols(start, stop, 50, mask))
            part = seen[:, :, :, block.rows, block.cols]
            scores = torch.randn(part.shape, generator=generator) * 100
            before = scores.clone()
            hiding.apply(scores, block)
            assert torch.equal(scores[part], before[part])
            assert (scores[~part] <= HIDDEN).all()


@pytest.mark.parametrize("mask", MASKS)
def test_rows_that_see_nothing_are_foreseen(mask):
    blind = not by_position(mask, 37, 50).any(1).all()
    assert may_be_blind(torch.zeros(1, 1, 37, 8), torch.zeros(1, 1, 50, 8), mask) == blind


def test_blocks_of_broadcast_tensors():
    """Of one batch row or head for all, a block takes that one; of several, its own."""
    block = Block(slice(1, 2), slice(2, 3), slice(4, 6), slice(0, 3))
    heads = torch.arange(2 * 6).view(2, 6)[..., None, None].expand(2, 6, 9, 5)
    assert block.of(grouped(heads, 2), rows=3, cols=4)[0, 0, :, 0, 0].tolist() == [10, 11]
    assert block.of(grouped(heads, 2), rows=3, cols=4).shape == (1, 1, 2, 2, 3)
    assert block.of(grouped(heads[:1, :1], 2), rows=3, cols=4).shape == (1, 1, 1, 2, 3)
