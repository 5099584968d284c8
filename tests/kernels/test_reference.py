"""The reference against torch's own attention and against maps written out by loops."""

# A statistic that is None where a test reads it fails that test.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from probe.kernels import reference
from probe.kernels.contract import Band, Mask, Request, Scoring
from tests.kernels.cases import scored

EVERYTHING = Request(lse=True, entropy=True, distance=True, windowed_distance=3, top=4, received=Band(), pooled=(3, 4))


def attend(query, key, value, **options):
    return reference.attend(query, key, value, **scored(**{"scale": 0.3} | options))


def visible(mask: Mask, batch: int, head: int, row: int, col: int) -> bool:
    """The contract of `Mask`, read out loud."""
    i, j = mask.first_query + row, mask.first_key + col
    return (
        (not mask.causal or j <= i)
        and (mask.window is None or i - j < mask.window)
        and (mask.keys is None or bool(mask.keys[batch, col]))
        and (mask.pairs is None or bool(mask.pairs[batch % mask.pairs.shape[0], head % mask.pairs.shape[1], row, col]))
    )


MASKS = {
    "causal": Mask(),
    "full": Mask(causal=False),
    "window": Mask(window=3),
    "window both ways": Mask(causal=False, window=3),
    "decode": Mask(first_query=4),
    "moved": Mask(first_query=9, first_key=5, window=6),
    "before the keys": Mask(first_query=0, first_key=3),
    "padding": Mask(keys=torch.arange(9) >= torch.tensor([[0], [3]])),
    "pairs": Mask(causal=False, pairs=torch.rand(1, 4, 6, 9, generator=torch.Generator().manual_seed(0)) > 0.4),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([-1.0, 0.0, 1.0, 2.0])], ids=["", "sinks"])
def test_every_statistic_by_loops(sample, mask, softcap, sinks):
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=6, keys=9, value_dim=3)
    output, found = attend(query, key, value, mask=mask, softcap=softcap, sinks=sinks, request=EVERYTHING)
    q, k, v = query.double(), key.double(), value.double()
    whole = torch.zeros(2, 4, 6, 9).double()
    for b, h, i in [(b, h, i) for b in range(2) for h in range(4) for i in range(6)]:
        s = {j: 0.3 * (q[b, h, i] @ k[b, h // 2, j]).item() for j in range(9) if visible(mask, b, h, i, j)}
        if softcap is not None:
            s = {j: softcap * math.tanh(x / softcap) for j, x in s.items()}
        at = (b, h, i)
        if not s:
            assert found.lse[at] == -math.inf and math.isnan(found.entropy[at]) and math.isnan(found.distance[at])
            assert math.isnan(found.windowed_distance[at]) and found.top_key[at].eq(-1).all() and not output[at].any()
            continue
        total = sum(math.exp(x) for x in s.values()) + (0 if sinks is None else math.exp(sinks[h]))
        p = {j: math.exp(x) / total for j, x in s.items()}
        whole[at][list(p)] = torch.tensor(list(p.values())).double()
        away = {j: mask.first_query + i - mask.first_key - j for j in p}
        best = sorted(p, key=lambda j: (-p[j], j))[:4]
        assert found.lse[at].item() == pytest.approx(math.log(total))
        assert found.entropy[at].item() == pytest.approx(-sum(x * math.log(x) for x in p.values()))
        assert found.distance[at].item() == pytest.approx(sum(p[j] * away[j] for j in p))
        assert found.windowed_distance[at].item() == pytest.approx(sum(p[j] * min(away[j], 3) for j in p))
        assert found.top_key[at].tolist() == [j + mask.first_key for j in best] + [-1] * (4 - len(best))
        assert found.top_weight[at].tolist() == pytest.approx([p[j] for j in best] + [0.0] * (4 - len(best)))
        assert torch.allclose(output[at], sum(p[j] * v[b, h // 2, j] for j in p))
    # 6 rows in at most 3: tiles of 2 rows; 9 columns in at most 4: tiles of 3
    tiles = whole.unflatten(2, (3, 2)).unflatten(4, (3, 3)).amax((3, 5))
    assert torch.allclose(found.pooled, tiles)


@pytest.mark.parametrize(
    ("band", "mask"),
    [
        (Band(), Mask()),
        (Band(lo=2, hi=4), Mask()),
        (Band(start=5, stop=8, lo=-2), Mask(causal=False, first_query=3)),
        (Band(lo=1, hi=1), Mask(window=2, first_query=1)),
        (Band(), Mask(keys=torch.arange(9) < torch.tensor([[9], [4]]))),
        (Band(stop=7), Mask(keys=torch.arange(9) >= torch.tensor([[0], [2]]), first_query=3)),
        (Band(), Mask(first_query=20, keys=torch.arange(9) < 5)),
    ],
)
def test_received_by_loops(sample, band, mask):
    query, key, value = sample(batch=2, kv_heads=1, group=2, queries=6, keys=9)
    mask = replace(mask, keys=None if mask.keys is None else mask.keys.expand(2, -1))
    _, found = attend(query, key, value, mask=mask, request=Request(lse=True, received=band))
    p = reference.tile(query, key, found.lse, rows=range(6), cols=range(9), scoring=Scoring(mask, 0.3))
    for b, h, col in [(b, h, col) for b in range(2) for h in range(2) for col in range(9)]:
        weights = []
        for row in range(6):
            i, j = mask.first_query + row, mask.first_key + col
            own = i - mask.first_key
            padding = mask.keys is not None and 0 <= own < 9 and not mask.keys[b, own]
            start, stop = band.start or 0, 10**9 if band.stop is None else band.stop
            if start <= i < stop and band.lo <= i - j <= (10**9 if band.hi is None else band.hi) and not padding:
                weights.append(p[b, h, row, col].item())
        assert found.received_rows[b, col].item() == len(weights)
        got = found.received[b, h, col].item()
        assert math.isnan(got) if not weights else got == pytest.approx(sum(weights) / len(weights))


@pytest.mark.parametrize("causal", [True, False])
def test_output_is_torchs(sample, causal):
    query, key, value = (t.double() for t in sample(batch=2, kv_heads=2, group=3, queries=9, keys=9, value_dim=5))
    found, _ = attend(query, key, value, mask=Mask(causal=causal))
    expected = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected)


def test_sets_split_the_output(sample):
    """The partial sums of a set and of its complement add up to the output, their masses to 1."""
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=7, keys=7, value_dim=3)
    one = torch.rand(2, 4, 1, 7, generator=torch.Generator().manual_seed(3)) > 0.5
    request = Request(sets=torch.cat([one, ~one], 2), partial=True)
    output, found = attend(query, key, value, request=request)
    torch.testing.assert_close(found.partial.sum(3), output)
    torch.testing.assert_close(found.mass.sum(3), torch.ones(2, 4, 7).double())
    tile = reference.tile(
        query, key, attend(query, key, value, request=Request(lse=True))[1].lse,
        rows=range(7), cols=range(7), scoring=Scoring(Mask(), 0.3),
    )  # fmt: skip
    torch.testing.assert_close(found.mass[..., 0], (tile * one).sum(-1))


def test_gradients_are_numeric_derivatives(sample):
    query, key, value = (t.double().requires_grad_() for t in sample(kv_heads=1, group=2, queries=3, keys=4, width=2))
    sinks = torch.tensor([0.5, -0.5]).double().requires_grad_()
    mask = Mask(first_query=1, keys=torch.tensor([[False, True, True, True]]))
    assert torch.autograd.gradcheck(
        lambda *t: attend(*t[:3], mask=mask, softcap=2.0, sinks=t[3])[0], (query, key, value, sinks)
    )


def test_gradients_of_a_row_that_sees_nothing_are_zero(sample):
    query, key, value = (t.requires_grad_() for t in sample(queries=3, keys=3))
    sinks = torch.zeros(1, requires_grad=True)
    mask = Mask(keys=torch.tensor([[False, False, True]]))
    attend(query, key, value, mask=mask, sinks=sinks)[0].sum().backward()
    assert not query.grad[:, :, :2].any()
    assert all(t.grad.isfinite().all() for t in (query, key, value, sinks))


def test_a_row_that_is_not_a_number_stays_one(sample):
    query, key, value = sample(queries=9, keys=9)
    query[0, 0, 5, 0] = math.nan
    output, found = attend(query, key, value, request=replace(EVERYTHING, top=0, pooled=None))
    for statistic in (output.sum(-1), found.lse, found.entropy, found.distance, found.windowed_distance):
        assert statistic[0, 0].isnan().nonzero()[:, 0].tolist() == [5]
    assert found.received[0, 0].isnan().tolist() == [key <= 5 for key in range(9)]
