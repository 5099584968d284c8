"""The Triton kernels in the interpreter, against the reference, with tiles so small that every shape needs several."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.attend import attend
from probe.kernels.contract import Mask, Request
from probe.kernels.triton import attention as in_triton
from tests.kernels.cases import cases, everything, scored, thorough

pytest.importorskip("triton")
from probe.kernels.triton.call import reachable
from probe.kernels.triton.tiles import Tiles

pytestmark = pytest.mark.usefixtures("poisoned_empty")
slow = pytest.mark.slow
SMALL = Tiles(rows=16, cols=16, warps=4, stages=1)
TILES = [
    SMALL._replace(slots=8, run=8),
    SMALL._replace(rows=32),
    SMALL._replace(cols=32, edge=16, slots=4, run=2),
    SMALL._replace(cols=32, slots=8, run=4, settle=True),
    SMALL._replace(cols=32, slots=2),
    SMALL._replace(splits=3),
]


def both(*tensors, tiles=SMALL, **options):
    options = scored(**options)
    return in_triton.attend(*tensors, tiles=tiles, **options), reference.attend(*tensors, **options)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@slow
@given(
    case=cases(
        queries=(1, 2, 7, 33, 45),
        keys=(1, 3, 16, 40, 70),
        widths=(16, 24),
        value_dims=(16, 3),
        leads=[(1, 1, 2), (1, 2, 3), (2, 2, 1)],
    ),
    tiles=st.sampled_from(TILES),
)
@settings(thorough, max_examples=15)
def test_equals_the_reference(sample, same_statistics, case, tiles):
    """What belongs to keys and to maps has tests of its own."""
    case["request"] = replace(case["request"], received=None, pooled=None)
    tensors = sample(**case.pop("tensors"))
    (output, found), (expected, exact) = both(*tensors, tiles=tiles, **case)
    close(output, expected, 2e-5)
    same_statistics(found, exact, atol=2e-5, rtol=2e-5)


@slow
@pytest.mark.parametrize(("queries", "splits"), [(1, 7), (2, 1)])
def test_few_queries_against_a_long_cache(sample, same_statistics, queries, splits):
    """Programs share the keys, with none left for some of them, and the heads of a KV head share a program."""
    tensors = sample(batch=2, kv_heads=1, group=3, queries=queries, keys=200, width=16)
    padded = Mask(first_query=150, keys=torch.arange(200) >= torch.tensor([[0], [100]]))
    request = everything(200, top=1, received=None, pooled=None)
    sinks = torch.linspace(-2, 6, 3)
    for mask in (padded, replace(padded, window=100)):
        tiles = SMALL._replace(cols=32, splits=splits)
        (output, found), (expected, exact) = both(*tensors, tiles=tiles, mask=mask, sinks=sinks, request=request)
        close(output, expected)
        same_statistics(found, exact)


@slow
@pytest.mark.parametrize(("slots", "run", "settle"), [(1, 1, False), (8, 4, True), (8, 8, False)])
def test_many_tiles_that_every_row_sees(sample, same_statistics, slots, run, settle):
    """Sums kept in parts, as each device has them, over tiles without a mask, and peaks that rise with later tiles."""
    query, key, value = sample(kv_heads=1, group=2, queries=20, keys=260, width=16)
    key *= torch.linspace(0.2, 1.5, 260)[:, None]
    sets = torch.rand(1, 1, 3, 260, generator=torch.Generator().manual_seed(1)) > 0.7
    request = everything(260, sets=sets, partial=False, top=1, windowed_distance=50, received=None, pooled=None)
    tiles = SMALL._replace(cols=32, slots=slots, run=run, settle=settle)
    # the window of the first of a program's rows begins with a tile, and those of the others do not
    for mask in (Mask(first_query=240), Mask(first_query=240, window=177), Mask(causal=False, first_query=240)):
        (output, found), (expected, exact) = both(query, key, value, tiles=tiles, mask=mask, request=request)
        close(output, expected)
        same_statistics(found, exact)


@slow
@pytest.mark.parametrize(("dtype", "splits"), [(torch.float16, 2), (torch.bfloat16, 1)])
def test_half_precision(sample, same_statistics, dtype, splits):
    """Row statistics as exact as float32's for the rounded inputs; sums of values with weights rounded as they are."""
    tensors = sample(kv_heads=1, group=2, queries=40, keys=70, width=16, dtype=dtype)
    sets = torch.rand(1, 1, 3, 70, generator=torch.Generator().manual_seed(3)) > 0.7
    request = everything(70, sets=sets, received=None, pooled=None)
    options = {"mask": Mask(first_query=30), "request": request}
    (output, found), (expected, exact) = both(*tensors, tiles=SMALL._replace(splits=splits), **options)
    assert output.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, atol=3 * eps, rtol=eps)
    torch.testing.assert_close(found.partial.double(), exact.partial, atol=3 * eps, rtol=eps)
    same_statistics(replace(found, partial=None), replace(exact, partial=None))


@slow
@pytest.mark.parametrize(("shape", "count"), [((1, 1), 32), ((2, 1), 3), ((1, 2), 3), ((2, 2), 32)])
def test_key_sets(sample, same_statistics, shape, count):
    """Of every text and head or shared by them."""
    tensors = sample(batch=2, kv_heads=1, group=2, queries=20, keys=50, width=16)
    sets = torch.rand(*shape, count, 50, generator=torch.Generator().manual_seed(count)) > 0.8
    sets[..., 16:32] = False  # a tile without members
    request = Request(sets=sets, partial=count < 32)
    (_, found), (_, exact) = both(*tensors, mask=Mask(first_query=30), request=request)
    same_statistics(found, exact)


@pytest.mark.parametrize(
    ("peak", "sinks"),
    [(20.0, None), (14.0, torch.tensor([-5.0, 0.0, 20.0, 40.0])), (60.0, torch.tensor([-5.0, 0.0, 20.0, 40.0]))],
    ids=["", "low sinks", "sinks"],
)
def test_entropy_of_a_row_with_one_weight_of_nearly_1(sample, peak, sinks):
    """Where lse and sum p s are nearly equal: both are of the order of `peak`, the entropy of 1e-3 and less."""
    query, key, value = sample(group=4, queries=70, keys=70, width=16, sharp=1.0)
    query[..., 0], key[..., 0] = peak / 0.35, 0.0
    key[:, :, 3, 0] = 1.0
    key[..., 1:] *= 0.3
    request = Request(entropy=True, top=1, distance=True)
    tiles = SMALL._replace(rows=64, slots=8, run=8)
    (_, found), (_, exact) = both(query, key, value, tiles=tiles, sinks=sinks, request=request)
    if sinks is None and peak > 14:
        assert (exact.top_weight[:, :, 3:] > 0.9999).float().mean() > 0.9
    torch.testing.assert_close(found.entropy.double(), exact.entropy, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.top_weight.double(), exact.top_weight, atol=0, rtol=1e-5)
    close(found.distance, exact.distance)


@slow
@pytest.mark.parametrize("splits", [1, 4])
def test_short_distances_far_into_a_text(splits):
    """A head that looks one token back does so to 1e-6 at position 3000, wherever its key falls in a tile."""
    generator = torch.Generator().manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, 1, 3000, 32, generator=generator), dim=-1)
    query = 200 * key[:, :, -33:-1]
    tiles = SMALL._replace(cols=64, splits=splits, slots=8, run=8)
    request = Request(distance=True, windowed_distance=20)
    (_, found), (_, exact) = both(query, key, key, tiles=tiles, mask=Mask(first_query=2968), request=request)
    assert exact.distance.min() >= 0.999 and exact.distance.max() < 1.5
    torch.testing.assert_close(found.distance.double(), exact.distance, atol=0, rtol=1e-5)
    torch.testing.assert_close(found.windowed_distance.double(), exact.windowed_distance, atol=0, rtol=1e-5)


@slow
@pytest.mark.parametrize("k", [1, 7, 70])
def test_ties_go_to_the_lower_key(k):
    """Scores of three values only, over several tiles, and more keys than a list holds."""
    keys = 90
    key = torch.randint(0, 3, (1, 1, keys, 1), generator=torch.Generator().manual_seed(k)).float()
    for mask in (Mask(), Mask(window=60))[: 1 if k > 60 else 2]:
        (_, found), _ = both(torch.ones(1, 2, keys, 1), key, key, mask=mask, request=Request(top=k))
        for i in range(0, keys, 7):
            seen = range(max(0, i + 1 - (mask.window or keys)), i + 1)
            expected = sorted(seen, key=lambda j: (-key[0, 0, j, 0].item(), j))[:k]
            assert found.top_key[0, 1, i].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # numpy, in the interpreter
@pytest.mark.parametrize("at", [0, 20])
def test_not_a_number_comes_out_as_one(sample, at):
    """A broken query breaks its row, a broken key the rows that see it; neither is taken for a masked one."""
    query, key, value = sample(queries=40, keys=40, width=16)
    broken = query.clone()
    broken[0, 0, at, 3] = float("nan")
    request = Request(entropy=True, lse=True, top=1)
    (output, found), _ = both(broken, key, value, request=request)
    assert output[0, 0].isnan().any(-1).nonzero()[:, 0].tolist() == [at]
    assert found.lse[0, 0].isnan().nonzero()[:, 0].tolist() == [at]
    key[0, 0, at, 3] = float("nan")
    (output, _), _ = both(query, key, value, request=request)
    assert output[0, 0].isnan().any(-1).nonzero()[:, 0].tolist() == list(range(at, 40))


@slow
def test_inputs_laid_out_as_models_do(sample, same_statistics):
    """Heads side by side in memory, or elements apart: the numbers are those of contiguous inputs."""
    tensors = sample(batch=2, kv_heads=1, group=2, queries=20, keys=20, width=16)
    apart = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    strided = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    copies = [t.clone() for t in apart]
    request = everything(20, received=None, pooled=None)
    (expected, exact), _ = both(*tensors, request=request)
    for inputs in (apart, strided):
        (output, found), _ = both(*inputs, request=request)
        close(output, expected.double(), 1e-6)
        same_statistics(found, exact, atol=1e-6)
        assert output.transpose(1, 2).is_contiguous()
    assert all(torch.equal(one, other) for one, other in zip(apart, copies, strict=True))


def test_vectors_too_far_apart_for_a_tile_are_copied():
    """Offsets within a tile have 32 bits: 16 rows reach to 15 strides and a vector more, and no further."""
    near, far = (
        torch.empty_strided((1, 1, 16, 8), (0, 0, (2**31 - 8) // 15 + more, 1), device="meta") for more in (0, 1)
    )
    assert reachable(near, 16) is near
    assert reachable(far, 15) is far
    assert reachable(far, 16).stride()[-2:] == (8, 1)


@pytest.mark.parametrize(("scale", "sharp"), [(-0.5, 2.0), (0.0, 2.0), (30.0, 0.1)])
def test_any_scale(sample, same_statistics, scale, sharp):
    """Scores have a spread of a few units, so that float32 keeps five digits of the weights."""
    tensors = sample(queries=20, keys=40, width=16, sharp=sharp)
    request = Request(lse=True, entropy=True, top=1)
    for k in (1, 3):
        options = {"mask": Mask(first_query=20), "request": replace(request, top=k), "scale": scale}
        (output, found), (expected, exact) = both(*tensors, **options)
        close(output, expected)
        same_statistics(found, exact)


def test_wide_heads(sample, same_statistics):
    tensors = sample(queries=20, keys=20, width=256, value_dim=136, sharp=0.2)
    request = everything(20, received=None, pooled=None)
    (output, found), (expected, exact) = both(*tensors, tiles=SMALL._replace(rows=32), request=request)
    close(output, expected)
    same_statistics(found, exact)


def test_what_it_cannot_serve(sample, monkeypatch):
    query, key, value = sample(width=16)
    assert in_triton.refusal(query, key, value=value) is None
    assert in_triton.refusal(query.double(), key.double()) == "computes in float32, not in torch.float64"
    wide = torch.zeros(1, 1, 8, 300)
    assert in_triton.refusal(query, key, value=wide) == "has no tiles for heads wider than 256, got 300"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert in_triton.refusal(query, key) == "runs on GPUs, not on cpu; with TRITON_INTERPRET=1 set, slowly on a CPU"
    with pytest.raises(ValueError, match="no implementation can serve this: triton: runs on GPUs"):
        attend(query, key, value, implementation="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert in_triton.refusal(query, key) == "needs triton, which is not installed"


@pytest.mark.slow
def test_auto_takes_it_on_no_cpu_and_imports_no_triton():
    """Even where the interpreter is on: `auto` must not be a thousand times slower than it need be."""
    code = (
        "import sys, torch\nfrom probe.kernels.attend import attend, chosen\n"
        "from probe.kernels.contract import Request\n"
        "t, asked = torch.ones(1, 1, 4, 16), Request(lse=True); attend(t, t, t, request=asked);"
        "sys.exit(chosen(t, t, request=asked) == 'triton' or 'probe.kernels.triton.launch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
