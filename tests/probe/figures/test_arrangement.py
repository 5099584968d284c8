"""Themes, sizes of text, and panels in one column."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from probe.figures import Plot
from probe.figures.arrangement import dressed, narrowed, panels, wrapped
from probe.figures.style import BLUE, coloured


def grid(rows: int, columns: int, *, share_x: bool = False) -> Plot:
    titles = [f"panel {place}" for place in range(rows * columns)]
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, shared_xaxes="all" if share_x else False, subplot_titles=titles
    )
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        figure.add_scatter(x=[1, 2], y=[place, 1], marker={"size": 8}, row=row + 1, col=column + 1)
    figure.update_yaxes(title="the height", col=1)
    figure.update_xaxes(title="the length", row=rows)
    return Plot(figure, headline="Lines", width=800, height=400)


@pytest.mark.parametrize("rows, columns", [(1, 3), (2, 2)])
def test_panels_are_stacked_in_reading_order_with_their_titles_and_labels(rows: int, columns: int):
    layout = narrowed(grid(rows, columns)).figure.to_dict()["layout"]
    found = panels(narrowed(grid(rows, columns)).figure.to_dict())
    assert [panel.titles[0]["text"] for panel in found] == [f"panel {place}" for place in range(rows * columns)]
    tops = [panel.top for panel in found]
    assert tops == sorted(tops, reverse=True) and len(set(tops)) == rows * columns and tops[0] == 1
    for upper, lower in pairwise(found):
        assert layout[upper.y]["domain"][0] > layout[lower.y]["domain"][1]  # they do not lie on one another
    for panel in found:
        assert layout[panel.x]["domain"] == [0, 1] and layout[panel.y]["title"]["text"] == "the height"
        assert layout[panel.x]["title"]["text"] == "the length" and layout[panel.y].get("showticklabels", True)
    assert layout[found[-1].y]["domain"][0] == pytest.approx(0)


def test_an_axis_that_all_panels_share_has_labels_at_the_foot_only():
    plot = narrowed(grid(2, 2, share_x=True))
    layout = plot.figure.to_dict()["layout"]
    found = panels(plot.figure.to_dict())
    assert [layout[panel.x]["showticklabels"] for panel in found] == [False, False, False, True]
    assert [layout[panel.x].get("title", {}).get("text") for panel in found] == [None, None, None, "the length"]


def test_a_title_over_a_column_is_repeated_over_each_of_its_panels():
    figure = make_subplots(rows=2, cols=2, subplot_titles=["left", "right"])
    for place in range(4):
        figure.add_scatter(x=[1], y=[place], row=place // 2 + 1, col=place % 2 + 1)
    found = panels(narrowed(Plot(figure, headline="Points")).figure.to_dict())
    assert [[note["text"] for note in panel.titles] for panel in found] == [["left"], ["right"]] * 2


def test_one_column_stays_and_long_titles_are_wrapped():
    figure = go.Figure(go.Scatter(x=[1], y=[1]))
    figure.update_xaxes(title="a title that is far longer than a phone or a column is wide")
    plot = narrowed(Plot(figure, headline="A point", width=700, height=100))
    assert plot.figure.to_dict()["layout"]["xaxis"]["title"]["text"].count("<br>") == 1
    assert plot.height / plot.width == pytest.approx(0.65)  # flat figures get taller
    assert narrowed(Plot(figure, headline="A point", width=700, height=100, keep=True)).height == 40
    assert figure.to_dict()["layout"]["xaxis"]["title"]["text"].count("<br>") == 0  # the plot itself is as it was


def test_wrapping_counts_what_is_seen_and_leaves_no_single_word():
    assert wrapped("one two three four", 100) == ["one two three four"]
    assert wrapped(f"{coloured('one two', BLUE)} &lt; three", 17) == [f"{coloured('one two', BLUE)} &lt; three"]
    lines = wrapped("exact effect of the edge alone, % of the gap", 42)
    assert len(lines) == 2 and min(map(len, lines)) > 15
    assert wrapped("", 10) == []


def test_sizes_scale_and_text_never_falls_below_the_least():
    figure = go.Figure(
        go.Scatter(x=[1, 900], y=[2, 3], marker={"size": [8, 12]}, line={"width": 2}, textfont={"size": 11})
    )
    figure.add_annotation(x=1, y=2, text="a", ax=20, ay=-30, font={"size": 10})
    figure.update_xaxes(title="x")
    content: Any = dressed(figure, scale=0.5, least=9.0)
    (trace,) = content["data"]
    assert trace["marker"]["size"] == [4, 6] and trace["line"]["width"] == 1 and trace["textfont"]["size"] == 9
    assert list(trace["x"]) == [1, 900]
    (note,) = content["layout"]["annotations"]
    assert (note["ax"], note["ay"], note["x"], note["font"]["size"]) == (10, -15, 1, 9)
    assert content["layout"]["template"]["layout"]["font"]["size"] == 9
    assert figure.to_dict()["data"][0]["marker"]["size"] == [8, 12]  # the figure itself is as it was


def test_panel_titles_start_at_the_left_of_their_panel():
    content = dressed(grid(1, 2).figure)
    left = [content["layout"][axis]["domain"][0] for axis in ("xaxis", "xaxis2")]
    assert [note["x"] for note in content["layout"]["annotations"]] == left
    assert content["layout"]["margin"]["t"] >= 30
