"""Gradients of the output under every implementation, against autograd through the reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from probe.kernels import sweep
from probe.kernels.attend import attend, pool
from probe.kernels.contract import Band, Mask, Request
from tests.kernels.cases import STATISTICIANS

pytestmark = pytest.mark.usefixtures("poisoned_empty")
statisticians = pytest.mark.parametrize("implementation", STATISTICIANS)

GRADIENT_CASES = {
    "causal": {},
    "decode": {"mask": Mask(first_query=30)},
    "window": {"mask": Mask(window=9, first_query=30)},
    "full": {"mask": Mask(causal=False)},
    "padding": {"mask": Mask(keys=torch.arange(70) >= torch.tensor([[0], [25]]), first_query=0)},
    "right padding": {"mask": Mask(keys=torch.arange(70) < torch.tensor([[70], [50]]), first_query=30)},
    "pairs": {"mask": Mask(pairs=torch.rand(1, 4, 40, 70, generator=torch.Generator().manual_seed(0)) > 0.3)},
    "before the keys": {"mask": Mask(first_key=10)},
    "softcap": {"softcap": 2.0, "mask": Mask(first_query=30)},
    "sinks": {"sinks": torch.tensor([-1.0, 0.0, 1.0, 3.0]), "mask": Mask(first_query=5)},
    "all": {
        "softcap": 3.0,
        "sinks": torch.tensor([-1.0, 0.0, 1.0, 3.0]),
        "mask": Mask(window=20, first_query=20, keys=torch.arange(70) >= torch.tensor([[0], [45]])),
    },
}


def leaves_of(sample, **shape):
    return [t.requires_grad_() for t in sample(**shape)]


def everything(keys: int) -> Request:
    sets = torch.arange(keys)[None, None, None] < 3
    return Request(
        lse=True,
        entropy=True,
        distance=True,
        windowed_distance=9,
        top=1,
        sets=sets,
        partial=True,
        received=Band(),
        pooled=(7, 5),
    )


@pytest.mark.parametrize("request_", [Request(), Request(entropy=True, received=Band())], ids=["plain", "statistics"])
@pytest.mark.parametrize(
    ("implementation", "budget", "case"),
    [
        *product(("native", "blocked"), (3000, 8 << 20), GRADIENT_CASES),
        # the backward pass is one for all, and the forward pass has tests of its own: the interpreter runs few cases
        *(pytest.param("triton", 3000, case, marks=pytest.mark.slow) for case in ("pairs", "all")),
    ],
)
def test_gradients_equal_those_through_the_reference(sample, monkeypatch, implementation, case, budget, request_):
    monkeypatch.setitem(sweep.BUDGET, "cpu", budget)
    options = {"mask": Mask(), "scale": 0.35, "request": request_} | GRADIENT_CASES[case]
    weight = torch.randn(2, 4, 40, 8, generator=torch.Generator().manual_seed(5))
    found = []
    for name in (implementation, "reference"):
        leaves = leaves_of(sample, batch=2, kv_heads=2, group=2, queries=40, keys=70)
        if "sinks" in options:
            leaves.append(options["sinks"].clone().requires_grad_())
            options["sinks"] = leaves[-1]
        output, _ = attend(*leaves[:3], **options, implementation=name)
        (output * weight).sum().backward()
        found.append([leaf.grad for leaf in leaves])
        options |= GRADIENT_CASES[case]
    for mine, exact in zip(*found, strict=True):
        assert exact.abs().max() > 0.01
        torch.testing.assert_close(mine, exact, atol=1e-4, rtol=1e-4)


@statisticians
def test_a_statistic_says_that_it_has_no_gradient(sample, implementation):
    output, found = attend(
        *leaves_of(sample, queries=20, keys=20), request=everything(20), implementation=implementation
    )
    assert output.requires_grad
    for name in found.__slots__:
        statistic = getattr(found, name)
        if statistic.is_floating_point():
            with pytest.raises(RuntimeError, match=f"{name}: statistics of attention carry no gradient"):
                (output.sum() + statistic.sum()).backward(retain_graph=True)
    output.sum().backward()


def test_statistics_are_plain_numbers_where_no_gradient_is_wanted(sample):
    tensors = leaves_of(sample, queries=20, keys=20)
    with torch.no_grad():
        _, found = attend(*tensors, request=everything(20))
    _, other = attend(*sample(queries=20, keys=20), request=everything(20))
    for statistics in (found, other):
        assert not any(getattr(statistics, name).requires_grad for name in statistics.__slots__)


def test_value_and_head_widths_may_differ(sample):
    leaves = leaves_of(sample, queries=20, keys=20, value_dim=3)
    output, _ = attend(*leaves)
    expected, _ = attend(*leaves, implementation="reference")
    mine = torch.autograd.grad(output.sum(), leaves)
    for one, other in zip(mine, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_backward_makes_no_map(sample, monkeypatch, largest):
    monkeypatch.setitem(sweep.BUDGET, "cpu", 400_000)
    leaves = leaves_of(sample, kv_heads=2, group=2, queries=1200, keys=1200)
    output, _ = attend(*leaves, request=Request(lse=True))
    with largest() as seen:
        output.sum().backward()
    assert 0 < seen.elements <= 110_000


@statisticians
def test_autocast_changes_nothing(sample, same_statistics, implementation):
    """Under autocast a matrix product of float32 would run in bfloat16, forward and backward."""
    found = []
    for enabled in (False, True):
        length = 60 if implementation == "triton" else 150
        leaves = leaves_of(sample, kv_heads=2, group=2, queries=length, keys=length)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output, statistics = attend(*leaves, request=everything(length), implementation=implementation)
            gradients = torch.autograd.grad(output.square().sum(), leaves)
            pooled = pool(leaves[0], leaves[1], statistics.lse, shape=(9, 9))
        found.append((output, gradients, pooled, statistics))
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    same_statistics(found[0][3], found[1][3], atol=0, rtol=0)
