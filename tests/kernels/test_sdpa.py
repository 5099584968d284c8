"""Torch's own attention under every mask, and where it must run without a mask tensor."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probe.kernels import reference, sdpa
from probe.kernels.attend import attend
from probe.kernels.contract import Mask, Request
from tests.kernels.cases import scored

MASKS = {
    "causal": Mask(),
    "full": Mask(causal=False),
    "decode": Mask(first_query=60),
    "chunked prefill": Mask(first_query=20),
    "window": Mask(window=9, first_query=20),
    "a window wider than the text": Mask(window=80, first_query=20),
    "window both ways": Mask(window=9, causal=False),
    "left padding": Mask(keys=torch.arange(80) >= torch.tensor([[0], [33]])),
    "right padding": Mask(keys=torch.arange(80) < torch.tensor([[80], [33]]), first_query=20),
    "no key of the second text": Mask(keys=torch.tensor([[True], [False]]).expand(2, 80)),
    "pairs": Mask(pairs=torch.rand(2, 4, 60, 80, generator=torch.Generator().manual_seed(0)) > 0.7),
    "pairs of all heads": Mask(pairs=torch.rand(1, 1, 60, 80, generator=torch.Generator().manual_seed(0)) > 0.7),
    "moved": Mask(first_query=30, first_key=10, window=15),
    "before the keys": Mask(first_query=0, first_key=10),
    "after the window": Mask(first_query=100, window=30),
    "long after the window": Mask(first_query=1000, window=30),
}


@pytest.mark.parametrize("rows", [16, 512])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_equals_the_reference(sample, monkeypatch, mask, rows):
    monkeypatch.setattr(sdpa, "ROWS", rows)
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=60, keys=80)
    options = scored(mask)
    expected, _ = reference.attend(query, key, value, **options)
    torch.testing.assert_close(sdpa.attend(query, key, value, **options)[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("queries", "mask"),
    [
        (1, Mask(first_query=79)),
        (1, Mask(first_query=40)),
        (1, Mask(first_query=79, window=30)),
        (1, Mask(first_query=200, first_key=121)),
        (80, Mask(first_query=5)),
        (80, Mask(first_key=5)),
    ],
)
def test_shapes_that_need_no_mask_or_seem_not_to(sample, queries, mask):
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=queries, keys=80)
    options = scored(mask)
    expected, _ = reference.attend(query, key, value, **options)
    torch.testing.assert_close(sdpa.attend(query, key, value, **options)[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [Mask(), Mask(keys=torch.arange(40)[None] >= 7)], ids=["causal", "padding"])
def test_half_precision(sample, dtype, mask):
    query, key, value = sample(kv_heads=2, group=2, queries=40, keys=40, dtype=dtype)
    options = scored(mask)
    found = sdpa.attend(query, key, value, **options)[0]
    expected, _ = reference.attend(query, key, value, **options)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps
    )


class Calls(TorchDispatchMode):
    """Names of the operations run inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (Mask(), 60, 60),
        (Mask(), 60, 80),  # a cache with unused room
        (Mask(causal=False), 60, 80),
        (Mask(first_query=79), 1, 80),
        (Mask(first_query=40), 1, 80),
        (Mask(first_query=7, first_key=7, window=60), 60, 60),
    ],
)
def test_no_mask_is_built_where_none_is_needed(sample, mask, queries, keys):
    tensors = sample(kv_heads=2, group=2, queries=queries, keys=keys)
    with torch.no_grad(), Calls() as calls:
        sdpa.attend(*tensors, **scored(mask))
    assert "_scaled_dot_product_flash_attention_for_cpu" in calls.names
    assert not {"arange", "ones", "cat", "le", "bitwise_and"} & set(calls.names)


@pytest.mark.parametrize(
    ("mask", "most"),
    [(Mask(), 80_000), (Mask(window=200), 512 * 1200), (Mask(keys=torch.arange(1200)[None] >= 9), 512 * 1200)],
    ids=["causal", "window", "padding"],
)
def test_no_map_is_ever_made(sample, largest, mask, most):
    """A map has 4 x 1200 x 1200 elements, the output 38,400."""
    tensors = sample(kv_heads=2, group=2, queries=1200, keys=1200)
    with torch.no_grad(), largest() as seen:
        sdpa.attend(*tensors, **scored(mask))
    assert 0 < seen.elements <= most


def test_what_it_cannot_do_it_refuses(sample):
    query, key, value = sample(value_dim=3)
    with pytest.raises(ValueError, match="sdpa: returns no statistics"):
        attend(query, key, value, request=Request(lse=True), implementation="sdpa")
    with pytest.raises(ValueError, match="sdpa: has neither soft-capping nor learned sinks"):
        attend(query, key, value, softcap=2.0, implementation="sdpa")
    with pytest.raises(ValueError, match="sdpa: builds the whole map where value and key differ in width"):
        attend(query, key, value, implementation="sdpa")
