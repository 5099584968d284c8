"""The figure says which size keeps the answer, and draws what the curve holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.analyses.circuits.edges.figures import curve_figure
from probe.edges.curves import CircuitCurve


def curve(answer: float, *, draws: int = 2) -> CircuitCurve:
    """Two prompts, clean 5 and 3, corrupted -5 and -3: the gap is 8."""
    clean = torch.tensor([5.0, 3.0])
    difference = torch.stack([-clean, answer * clean, clean])
    return CircuitCurve(
        percents=(1.0, 10.0, 100.0), sizes=(7, 70, 700), connected=(0, 60, 700), difference=difference,
        random=torch.stack([-clean, -clean, clean]).repeat(draws, 1, 1), clean=clean, corrupted=-clean,
        method="EAP", by="magnitude",
    )  # fmt: skip


def test_headline_lines_and_errors():
    plot = curve_figure(curve(0.9), name="IOI, tiny")
    figure: Any = plot.figure
    assert plot.headline == "10 % of the edges keep nine tenths of the answer: IOI, tiny"
    assert [trace.showlegend for trace in figure.data] == [True, False, None]
    assert list(figure.data[0].y) == [0, 0, 1] and figure.data[2].y == pytest.approx((0, 0.95, 1))
    # at 10 %: differences 4.5 and 2.7, sd 1.2728, over the root of 2 and the gap of 8, twice
    assert figure.data[2].error_y.array[1] == pytest.approx(2 * 1.2728 / 2**0.5 / 8, abs=1e-4)
    assert "CPR .920, CMD .070" in plot.reading  # .475 x .09 + .975 x .9


def test_without_a_smaller_circuit_it_says_so():
    plot = curve_figure(curve(0.5, draws=0), name="IOI")
    assert "100 % of the edges keep" not in plot.headline
    assert "No circuit smaller than the model keeps nine tenths" in plot.headline and len(plot.figure.data) == 1
