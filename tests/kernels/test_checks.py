"""Every refusal, by the words that it must say."""

from __future__ import annotations

import pytest
import torch

from probe.kernels.attend import attend, pool, tile
from probe.kernels.contract import Band, Mask, Request

Q, K, V = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 9, 8), torch.zeros(2, 2, 9, 3)
TRUE = torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((Q[0], K, V), r"query: expected 4 dimensions \[batch, heads, length, width\], got \[4, 5, 8\]"),
        ((Q.long(), K, V), "query: expected a floating dtype, got torch.int64"),
        ((Q, K.double(), V), "key: expected torch.float32 on cpu, as the query, got torch.float64 on cpu"),
        ((Q, K, V.to("meta")), "value: expected torch.float32 on cpu, as the query, got torch.float32 on meta"),
        ((Q, K[:, :, :0], V), r"key: expected no empty dimension, got \[2, 2, 0, 8\]"),
        ((Q, K[..., :7], V), r"key: expected \[2, kv_heads, keys, 8\] to fit query \[2, 4, 5, 8\], got \[2, 2, 9, 7\]"),
        ((Q, K[:1], V), r"key: expected \[2, kv_heads, keys, 8\] .* got \[1, 2, 9, 8\]"),
        ((Q[:, :3], K, V), "key: expected a number of KV heads that divides 3 query heads, got 2"),
        ((Q, K, V[:, :, :8]), r"value: expected \[2, 2, 9, 'value_dim'\] to fit key .* got \[2, 2, 8, 3\]"),
    ],
)
def test_tensors(tensors, message):
    with pytest.raises(ValueError, match=message):
        attend(*tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": Mask(window=0)}, "mask.window: expected at least 1 key, got 0"),
        ({"mask": Mask(keys=TRUE[:1])}, r"mask.keys: expected \[2, 9\] bool on cpu, got \[1, 9\] torch.bool on cpu"),
        ({"mask": Mask(keys=TRUE.long())}, r"mask.keys: .* got \[2, 9\] torch.int64 on cpu"),
        ({"mask": Mask(pairs=TRUE)}, r"mask.pairs: expected \[2 or 1, 4 or 1, 5, 9\] bool on cpu, got \[2, 9\]"),
        ({"mask": Mask(pairs=torch.ones(2, 2, 5, 9, dtype=torch.bool))}, r"mask.pairs: .* got \[2, 2, 5, 9\]"),
        ({"scale": float("nan")}, "scale: expected a finite number, got nan"),
        ({"softcap": 0.0}, "softcap: expected a positive number, got 0.0"),
        ({"softcap": -1.0}, "softcap: expected a positive number, got -1.0"),
        ({"sinks": torch.zeros(2)}, r"sinks: expected \[4\] floating on cpu, got \[2\] torch.float32 on cpu"),
        ({"sinks": torch.zeros(4).long()}, r"sinks: .* got \[4\] torch.int64"),
        ({"request": Request(windowed_distance=0)}, "windowed_distance: expected a window of at least 1 token, got 0"),
        ({"request": Request(top=10)}, "top: expected between 0 and 9 keys, got 10"),
        ({"request": Request(top=-1)}, "top: expected between 0 and 9 keys, got -1"),
        ({"request": Request(partial=True)}, "partial: expected key sets in `sets`, got none"),
        (
            {"request": Request(sets=torch.ones(1, 1, 33, 9, dtype=torch.bool))},
            r"sets: expected \[2 or 1, 4 or 1, 1 to 32, 9\] bool on cpu, got \[1, 1, 33, 9\]",
        ),
        ({"request": Request(sets=torch.ones(1, 1, 1, 9))}, r"sets: .* got \[1, 1, 1, 9\] torch.float32"),
        ({"request": Request(received=Band(lo=4, hi=3))}, "received: expected lo <= hi, got lo=4, hi=3"),
        ({"request": Request(received=Band(start=4, stop=3))}, "expected start <= stop, got start=4, stop=3"),
        ({"request": Request(pooled=(0, 5))}, r"pooled: expected at least \(1, 1\) rows and columns, got \(0, 5\)"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        attend(Q, K, V, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lse": torch.zeros(2, 4, 6)}, r"lse: expected \[2, 4, 5\] floating on cpu, got \[2, 4, 6\] torch.float32"),
        (
            {"rows": range(0, 6)},
            r"rows: expected a non-empty ascending range of indices in \[0, 5\), got range\(0, 6\)",
        ),
        (
            {"cols": range(3, 3)},
            r"cols: expected a non-empty ascending range of indices in \[0, 9\), got range\(3, 3\)",
        ),
        ({"cols": range(8, 2, -1)}, r"cols: .* got range\(8, 2, -1\)"),
        ({"rows": range(-1, 3)}, r"rows: .* got range\(-1, 3\)"),
        ({"mask": Mask(window=0)}, "mask.window"),
        ({"implementation": "fast"}, "got 'fast'"),
    ],
)
def test_tile(options, message):
    with pytest.raises(ValueError, match=message):
        tile(Q, K, **{"lse": torch.zeros(2, 4, 5)} | options)


def test_pool():
    with pytest.raises(ValueError, match=r"pooled: expected at least \(1, 1\) rows and columns, got \(5, 0\)"):
        pool(Q, K, torch.zeros(2, 4, 5), shape=(5, 0))
    with pytest.raises(ValueError, match="lse: expected"):
        pool(Q, K, torch.zeros(2, 4))


def test_messages_are_one_line():
    for mask, request in ((Mask(pairs=TRUE), None), (None, Request(top=10)), (Mask(window=0), None)):
        with pytest.raises(ValueError) as caught:
            attend(Q, K, V, mask=mask, request=request)
        assert "\n" not in str(caught.value)
