"""What the figures of head scores show: the right number in the right cell, under the right name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from probe import Head
from probe.analyses.heads.catalogue import correlation_table
from probe.figures import Plot
from probe.figures.heads import correlation_figure, map_figure, scatter_figure
from probe.figures.style import LOOK


def drawn(plot: Plot) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The traces and the layout, as the page's script gets them."""
    content = plot.figure.to_dict()
    return content["data"], content["layout"]


@pytest.mark.parametrize("layers", [4, 60])
@pytest.mark.parametrize("panels", [1, 2, 3, 5])
def test_a_map_shows_layers_across_and_heads_down(layers: int, panels: int):
    torch.manual_seed(0)
    maps = {f"kind{index}": torch.rand(layers, 3) for index in range(panels)}
    maps["kind0"][1, 2] = torch.nan
    traces, layout = drawn(map_figure(maps, headline="headline"))
    assert len(traces) == panels
    for trace, (kind, values) in zip(traces, maps.items(), strict=True):
        assert trace["z"][2][3] == pytest.approx(values[3, 2].item()) and trace["customdata"][2][3] == "L3H2"
        assert len(trace["z"]) == 3 and len(trace["z"][0]) == layers and trace["coloraxis"] == "coloraxis"
        assert kind in trace["hovertemplate"]
    assert math.isnan(traces[0]["z"][2][1]) and not traces[0]["hoverongaps"]
    assert [note["text"] for note in layout["annotations"]] == list(maps)


def test_a_signed_score_has_a_scale_of_its_own():
    maps = {"sink": torch.rand(2, 2), "copying": torch.tensor([[-1.0, 1], [0, 0]])}
    traces, layout = drawn(map_figure(maps, headline="headline"))
    assert [trace["coloraxis"] for trace in traces] == ["coloraxis", "coloraxis2"]
    assert (layout["coloraxis2"]["cmin"], layout["coloraxis2"]["cmax"]) == (-1, 1)
    assert (layout["coloraxis"]["cmin"], layout["coloraxis"]["cmax"]) == (0, 1)
    # the template's few ticks, which a fixed step would override where the figure is small
    assert all("dtick" not in layout[axis]["colorbar"] for axis in ("coloraxis", "coloraxis2"))
    assert LOOK["layout"]["coloraxis"]["colorbar"]["nticks"] == 4


def test_a_scatter_marks_and_names_heads():
    x, y = torch.arange(6.0).view(2, 3) / 5, torch.arange(6.0).view(2, 3).flip(0) / 5
    marked = [Head(1, 2), Head(0, 1), Head(1, 0)]
    traces, layout = drawn(scatter_figure(x, y, x_name="x", y_name="y", headline="headline", marked=marked, labels=2))
    line, rest, coloured = traces
    assert list(line["x"]) == [0, 1] == list(line["y"])
    assert list(rest["customdata"]) == ["L0H0", "L0H2", "L1H1"]
    assert list(coloured["customdata"]) == ["L1H2", "L0H1", "L1H0"]
    assert list(coloured["x"]) == pytest.approx([1.0, 0.2, 0.6]) and list(coloured["y"]) == pytest.approx(
        [0.4, 0.8, 0.0]
    )
    assert [note["text"] for note in layout["annotations"]] == ["L1H2", "L0H1"]


def test_labels_of_near_heads_do_not_lie_on_one_another():
    x = torch.full((1, 6), 0.5) + torch.arange(6.0) / 200
    marked = [Head(0, head) for head in range(6)]
    _, layout = drawn(scatter_figure(x, x, x_name="x", y_name="y", headline="headline", marked=marked))
    places = [(note["x"] * 480 + note["ax"], -note["y"] * 480 + note["ay"]) for note in layout["annotations"]]
    for index, (ax, ay) in enumerate(places):
        assert all(abs(ax - bx) > 12 or abs(ay - by) > 12 for bx, by in places[:index])


def test_the_correlation_matrix_has_pearson_below_and_spearman_above():
    a = torch.arange(12.0).view(3, 4)
    scores = {"sink": a, "copying": a.exp(), "induction": -a}
    traces, _ = drawn(correlation_figure(correlation_table(scores), list(scores), name="model"))
    cells, text = traces[0]["z"], traces[0]["text"]
    assert cells[0][1] == pytest.approx(1) and cells[1][0] < 0.7
    assert cells[2][0] == pytest.approx(-1) and cells[0][0] is None
    assert text[1][0] == f"{cells[1][0]:.2f}"[1:] and text[2][0] == "-1.00" and text[0][0] == ""
