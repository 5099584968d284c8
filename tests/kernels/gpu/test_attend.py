"""The compiled kernels, in the tiles that they are launched with, against the float64 reference on the same inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, seed, settings

from probe.kernels.attend import attend, chosen, pool, tile
from probe.kernels.contract import Band, Mask, Request
from tests.kernels.cases import cases, everything, thorough

pytestmark = pytest.mark.usefixtures("poisoned_empty")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [(16, 16), (24, 3), (64, 64), (80, 96), (128, 128), (192, 128), (256, 256)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def agree(tensors, same_statistics, **options):
    """Row statistics of half precision are as exact as those of float32, for the rounded inputs; sums of values less.

    Keys of equal weight in float32 need not be equal in float64, so top keys are compared by their weights.
    """
    query = tensors[0]
    half = query.dtype != torch.float32
    eps = torch.finfo(query.dtype).eps
    loose = {"atol": 4 * eps, "rtol": 2 * eps} if half else {"atol": 3e-5, "rtol": 3e-5}
    output, found = attend(*tensors, **options, implementation="triton")
    expected, exact = attend(*tensors, **options, implementation="reference")
    torch.testing.assert_close(output.double(), expected, **loose)
    if found.partial is not None:
        torch.testing.assert_close(found.partial.double().nan_to_num(7), exact.partial.double().nan_to_num(7), **loose)
    if found.top_weight is not None and exact.top_weight is not None:
        assert ((found.top_key == exact.top_key) | (found.top_weight - exact.top_weight).abs().lt(1e-5)).all()
    apart = {"partial": None, "top_key": None}
    same_statistics(replace(found, **apart), replace(exact, **apart), atol=3e-5)
    return found, exact


@each_dtype
@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"{width[0]}-{width[1]}")
def test_any_shape_mask_and_request(sample, same_statistics, on_gpu, width, dtype):
    """Hypothesis picks; each width and dtype its own examples."""

    @seed(WIDTHS.index(width) * 3 + DTYPES.index(dtype))
    @given(cases(queries=(1, 2, 33, 130, 260), keys=(1, 3, 65, 200, 385), widths=(width[0],), value_dims=(width[1],)))
    @settings(thorough, max_examples=10, derandomize=False)
    def check(case):
        tensors = on_gpu(sample(**case.pop("tensors"), dtype=dtype, sharp=8 / width[0] ** 0.5))
        agree(tensors, same_statistics, **on_gpu(case))

    check()


@each_dtype
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kind", ["causal", "full", "window", "softcap", "padding", "sinks"])
def test_long_texts(sample, same_statistics, on_gpu, kind, width, dtype):
    """Many programs and many tiles, at a length that fills none of them."""
    length = 2500
    options = {
        "causal": {},
        "full": {"mask": Mask(causal=False)},
        "window": {"mask": Mask(window=300)},
        "softcap": {"softcap": 20.0},
        "padding": {"mask": Mask(keys=torch.arange(length) >= torch.tensor([[0], [777]]))},
        "sinks": {"sinks": torch.linspace(-2, 6, 6)},
    }[kind]
    tensors = on_gpu(sample(batch=2, kv_heads=2, group=3, queries=length, keys=length, width=width, dtype=dtype))
    request = everything(length, top=1, pooled=(100, 90))
    agree(tensors, same_statistics, **on_gpu(options), request=on_gpu(request))
    agree(tensors, same_statistics, **on_gpu(options), request=Request(lse=True, entropy=True, distance=True, top=1))


@each_dtype
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("width", [64, 128])
def test_few_queries_against_a_long_cache(sample, same_statistics, on_gpu, width, queries, dtype):
    """Programs share the keys of a row."""
    keys = 30_011
    tensors = on_gpu(sample(batch=2, kv_heads=2, group=4, queries=queries, keys=keys, width=width, dtype=dtype))
    for mask in (Mask(first_query=keys - queries), Mask(first_query=keys - queries, window=1000)):
        agree(tensors, same_statistics, mask=mask, request=on_gpu(everything(keys, top=1, pooled=None)))


def test_32_key_sets_of_every_head(sample, same_statistics, on_gpu):
    sets = torch.rand(2, 6, 32, 700, generator=torch.Generator().manual_seed(1)) > 0.8
    for dtype in DTYPES:
        tensors = on_gpu(sample(batch=2, kv_heads=2, group=3, queries=700, keys=700, width=64, dtype=dtype))
        agree(tensors, same_statistics, request=on_gpu(Request(sets=sets, partial=True, received=Band(lo=2, hi=400))))


@each_dtype
def test_rows_with_one_weight_of_nearly_1(sample, same_statistics, on_gpu, dtype):
    """Where lse and sum p s are nearly equal, entropy is of the order of 1e-3 and less."""
    query, key, value = sample(group=4, queries=300, keys=300, width=64, sharp=1.0)
    query[..., 0], key[..., 0] = 160.0, 0.0
    key[:, :, 3, 0] = 1.0
    key[..., 1:] *= 0.3
    tensors = on_gpu([t.to(dtype) for t in (query, key, value)])
    _, exact = agree(tensors, same_statistics, request=Request(entropy=True, top=1, distance=True, received=Band()))
    assert (exact.top_weight[:, :, 3:] > 0.9999).float().mean() > 0.9


def test_offsets_beyond_32_bits(on_gpu):
    """Vectors 2 ** 24 elements apart: 200 of them reach past 2 ** 31 elements, and give what contiguous ones do."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    near = [torch.randn(1, 1, 200, 64, generator=generator, device="cuda").half() for _ in range(3)]
    far = []
    for tensor in near[1:]:
        apart = torch.empty_strided(tensor.shape, (0, 0, 2**24, 1), dtype=torch.half, device="cuda")
        far.append(apart.copy_(tensor))
    request = Request(lse=True, entropy=True, distance=True, top=1, received=Band(), pooled=(7, 7))
    output, found = attend(near[0], *far, request=request, implementation="triton")
    expected, exact = attend(*near, request=request, implementation="triton")
    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.received, exact.received)
    torch.testing.assert_close(found.pooled, exact.pooled)
    assert torch.equal(found.top_key, exact.top_key)


@each_dtype
def test_tiles_and_pooled_maps_from_the_lse(sample, on_gpu, dtype):
    query, key, value = on_gpu(sample(kv_heads=2, group=2, queries=500, keys=500, width=64, dtype=dtype))
    _, found = attend(query, key, value, request=Request(lse=True), implementation="triton")
    _, exact = attend(query, key, value, request=Request(lse=True), implementation="reference")
    for rows, cols in ((range(100, 333), range(17, 300, 3)), (range(500), range(500))):
        mine = tile(query, key, found.lse, rows=rows, cols=cols, implementation="triton")
        theirs = tile(query, key, exact.lse, rows=rows, cols=cols, implementation="reference")
        torch.testing.assert_close(mine.double(), theirs.double(), atol=1e-5, rtol=1e-4)
    mine = pool(query, key, found.lse, shape=(64, 50), implementation="triton")
    theirs = pool(query, key, exact.lse, shape=(64, 50), implementation="reference")
    torch.testing.assert_close(mine.double(), theirs.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "window", "softcap", "padding"])
def test_gradients_equal_those_through_the_reference(sample, on_gpu, kind):
    options = {
        "causal": {},
        "window": {"mask": Mask(window=30)},
        "softcap": {"softcap": 3.0},
        "padding": {"mask": Mask(keys=torch.arange(150) >= torch.tensor([[0], [60]]))},
    }[kind]
    tensors = sample(batch=2, kv_heads=2, group=2, queries=150, keys=150, width=32, sharp=1.0)
    found = []
    for name in ("triton", "reference"):
        leaves = [tensor.cuda().requires_grad_() for tensor in tensors]
        output, _ = attend(*leaves, **on_gpu(options), request=Request(entropy=True), implementation=name)
        (output.float() ** 2).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine, exact, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("band", [Band(), Band(start=500, lo=1, hi=64)])
def test_columns_add_up_to_rows(sample, on_gpu, band):
    """The weights that keys receive are those that the rows gave: of every row together, all of it."""
    tensors = on_gpu(sample(kv_heads=2, group=2, queries=3000, keys=3000, width=128, dtype=torch.bfloat16))
    _, found = attend(*tensors, request=Request(received=band), implementation="triton")
    if band == Band():
        given = (found.received * found.received_rows[:, None]).sum(-1)
        torch.testing.assert_close(given, torch.full_like(given, 3000.0), rtol=1e-4, atol=0)
    _, exact = attend(*tensors, request=Request(received=band), implementation="reference")
    torch.testing.assert_close(found.received.double(), exact.received, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_a_gpu_gets_triton_by_itself(sample, on_gpu):
    query, key, _ = on_gpu(sample(queries=9, keys=9, width=64))
    assert chosen(query, key, request=Request(lse=True)) == "triton"
    assert chosen(query, key) == "sdpa"
