"""oneDNN's product, where it serves, against float64."""

from __future__ import annotations

import pytest
import torch

from probe.kernels.products import WORTHWHILE, linear, linear_serves

LEFT, RIGHT = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)), torch.ones(64, 128)


@pytest.mark.skipif(not linear_serves(LEFT, RIGHT), reason="this processor or torch has no faster product")
@pytest.mark.parametrize("layout", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("cols", [1, 3, 80, 513])
def test_linear_is_the_product(layout, cols):
    """The second operand by rows, by columns (a transposed view), and with other heads between them."""
    right = torch.randn(64, cols, generator=torch.Generator().manual_seed(1))
    expected = LEFT.double() @ right.double()
    if layout == "columns":
        right = right.t().contiguous().t()
    if layout == "gaps":
        right = torch.stack([right.t()] * 3, 1)[:, 1].t()
    torch.testing.assert_close(linear(LEFT, right).double(), expected, atol=1e-5, rtol=1e-5)


def test_what_linear_does_not_serve(monkeypatch):
    assert LEFT.numel() * RIGHT.shape[1] > WORTHWHILE
    assert not linear_serves(LEFT.double(), RIGHT.double())
    assert not linear_serves(LEFT.half(), RIGHT.half())
    assert not linear_serves(LEFT[:4], RIGHT)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not linear_serves(LEFT, RIGHT)
