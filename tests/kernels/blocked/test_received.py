"""Column means: how many queries they are over, and which pieces of a block the band touches."""

from __future__ import annotations

import pytest
import torch

from probe.kernels.band import counted_queries, queries_in_band
from probe.kernels.blocked.received import Received
from probe.kernels.blocks import Block
from probe.kernels.contract import Band, Mask, Scoring
from probe.kernels.sweep import Sweep

BANDS = [
    Band(),
    Band(lo=3),
    Band(lo=-4, hi=2),
    Band(lo=2, hi=2),
    Band(hi=6),
    Band(start=8, stop=15),
    Band(stop=0),
    Band(lo=90),
]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("mask", [Mask(), Mask(first_query=7), Mask(first_query=3, first_key=9), Mask(first_query=50)])
def test_queries_in_band_by_loops(band, mask):
    kept = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) > 0.4
    mask = Mask(first_query=mask.first_query, first_key=mask.first_key, keys=kept)
    counted = counted_queries(13, mask, band, torch.device("cpu"))
    found = queries_in_band(counted, 20, mask.first_query - mask.first_key, band)
    for b in range(2):
        for col in range(20):
            count = 0
            for row in range(13):
                i, j = mask.first_query + row, mask.first_key + col
                own = i - mask.first_key
                real = not 0 <= own < 20 or bool(kept[b, own])
                in_rows = (band.start is None or i >= band.start) and (band.stop is None or i < band.stop)
                count += real and in_rows and i - j >= band.lo and (band.hi is None or i - j <= band.hi)
            assert found[b, col].item() == count


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("mask", [Mask(causal=False), Mask(causal=False, first_query=6)])
def test_sums_by_the_whole_map(band, mask):
    """Blocks of 5 rows and of changing columns; weights everywhere, ahead of the query too."""
    p = torch.rand(2, 1, 3, 23, 31, generator=torch.Generator().manual_seed(0))
    sweep = Sweep(torch.zeros(2, 3, 23, 8), torch.zeros(2, 1, 31, 8), Scoring(mask, 1.0))
    received = Received(sweep, band)
    for start in range(0, 23, 5):
        rows = slice(start, min(start + 5, 23))
        for cols in (slice(0, start), slice(start, 31)):
            received.add(Block(slice(0, 2), slice(0, 1), rows, cols), p[..., rows, cols])
    i, j = torch.arange(23)[:, None] + mask.first_query, torch.arange(31)
    inside = (i - j >= band.lo) & (i - j <= (10**9 if band.hi is None else band.hi))
    inside &= (i >= (band.start or 0)) & (i < (10**9 if band.stop is None else band.stop))
    torch.testing.assert_close(received.sums, (p * inside).sum(3))
    assert torch.equal(received.rows, inside.sum(0).expand(2, -1))


def test_whole_pieces_need_no_mask():
    """In a causal sweep without limits each block is one piece; a band cuts off an edge of `rows` keys at each end."""
    block = Block(slice(0, 1), slice(0, 1), slice(40, 48), slice(0, 48))

    def pieces(band: Band):
        text = torch.zeros(1, 1, 64, 8)
        return Received(Sweep(text, text, Scoring(Mask(), 1.0)), band).pieces(block)

    assert pieces(Band()) == [(slice(0, 48), True)]
    assert pieces(Band(lo=10, hi=30)) == [(slice(10, 17), False), (slice(17, 31), True), (slice(31, 38), False)]
    assert pieces(Band(lo=3, hi=4)) == [(slice(36, 43), False), (slice(43, 45), False)]
    assert pieces(Band(lo=60)) == []
