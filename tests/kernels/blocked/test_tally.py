"""Statistics of blocks: weights written by hand, taken in piece by piece."""

# A statistic that is None where a test reads it fails that test.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math

import pytest
import torch

from probe.kernels.blocked.tally import Columns, Tally, product
from probe.kernels.blocked.top import top_columns
from probe.kernels.blocks import Block
from probe.kernels.contract import Mask, Request, Scoring
from probe.kernels.sweep import Sweep


def take(tally: Tally, block: Block, p: torch.Tensor, v: torch.Tensor, *, shift: float = 0.0):
    s = p.log().clamp(min=-1e30) + shift
    peak = s.amax(-1)
    best = top_columns(s, peak[..., None], tally.request.top) if tally.request.top else None
    tally.add(block, p, s, v, best=best, peak=peak, spread=shift - peak, total=p.sum(-1))


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("ahead", [0, 5000])
@pytest.mark.parametrize("window", [1, 4, 100])
def test_row_statistics_of_weights_by_hand(ahead, window):
    """Two blocks of two rows, keys 0..3 and 2..6, at the start of a text and far into one."""
    query, key = torch.zeros(1, 2, 4, 1), torch.zeros(1, 1, 7, 1)
    value = torch.arange(7.0)[None, None, :, None]
    sets = torch.tensor([[1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)[None, None]
    request = Request(entropy=True, distance=True, windowed_distance=window, top=2, sets=sets, partial=True)
    mask = Mask(first_query=3 + ahead, first_key=ahead)
    rows = [[0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0], [0.125, 0.5, 0.125, 0.125, 0.125], [0.5, 0.0, 0.0, 0.5, 0.0]]
    tally = Tally(Sweep(query, key, Scoring(mask, 1.0)), value, request)
    for start, cols in ((0, slice(0, 4)), (2, slice(2, 7))):
        p = torch.tensor(rows[start : start + 2]).expand(1, 1, 2, -1, -1).contiguous()
        block = Block(slice(0, 1), slice(0, 1), slice(start, start + 2), cols)
        take(tally, block, p, value[:, :, cols], shift=30.0)
    found = tally.finish(torch.zeros(1, 2, 4), None)
    for row, first in enumerate((0, 0, 2, 2)):
        p = {first + j: x for j, x in enumerate(rows[row]) if x}
        best = sorted(p, key=lambda j: (-p[j], j))[:2]
        for head in range(2):
            at = (0, head, row)
            assert found.entropy[at].item() == pytest.approx(-sum(x * math.log(x) for x in p.values()), abs=1e-6)
            assert found.distance[at].item() == pytest.approx(sum(x * (3 + row - j) for j, x in p.items()))
            clipped = sum(x * min(3 + row - j, window) for j, x in p.items())
            assert found.windowed_distance[at].item() == pytest.approx(clipped)
            assert found.top_key[at].tolist()[: len(best)] == [j + ahead for j in best]
            assert found.top_weight[at].tolist()[: len(best)] == [p[j] for j in best]
            masses = [sum(x for j, x in p.items() if j in group) for group in ((0, 6), (2, 3, 4))]
            assert found.mass[at].tolist() == pytest.approx(masses)
            partial = [sum(x * j for j, x in p.items() if j in group) for group in ((0, 6), (2, 3, 4))]
            assert found.partial[at][:, 0].tolist() == pytest.approx(partial)


def test_a_block_without_keys_and_blind_rows():
    query, key = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 2, 1)
    request = Request(lse=True, entropy=True, top=1, sets=torch.ones(1, 1, 1, 2, dtype=torch.bool), partial=True)
    tally = Tally(Sweep(query, key, Scoring(Mask(), 1.0)), key, request)
    tally.skip(Block(slice(0, 1), slice(0, 1), slice(0, 3), slice(0, 0)))
    lse = torch.full((1, 1, 3), -math.inf)
    found = tally.finish(lse, lse.isneginf())
    assert found.entropy.isnan().all() and found.mass.isnan().all()
    assert (found.top_key == -1).all() and not found.top_weight.any() and not found.partial.any()


def test_columns_are_gathered_only_where_they_are_few():
    sets = torch.zeros(2, 1, 2, 40, dtype=torch.bool)
    sets[0, 0, 0, [3, 9]] = True
    sets[1, 0, 1, 10:40] = True
    columns = Columns(sets)
    assert columns.within(slice(0, 10)).tolist() == [3, 9]
    assert columns.within(slice(4, 14)) is None  # five of ten
    assert columns.within(slice(4, 15)) is None
    assert columns.within(slice(2, 11)).tolist() == [1, 7, 8]
    assert columns.within(slice(0, 3)).tolist() == []


@pytest.mark.parametrize("lead", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 3), (1, 2, 3)])
def test_product_broadcasts(lead):
    generator = torch.Generator().manual_seed(0)
    p, right = torch.rand(2, 2, 3, 5, 7, generator=generator), torch.rand(*lead, 7, 4, generator=generator)
    torch.testing.assert_close(product(p, right), torch.einsum("abcij,abcjk->abcik", p, right.expand(2, 2, 3, -1, -1)))
