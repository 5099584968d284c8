"""A plot in a notebook, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from probe.figures import Plot
from probe.figures.style import BLUE, DARK, SCORE_SCALE, SHARE_SCALE, SIGNED_SCALE, coloured


def plot(**changes: Any) -> Plot:
    fields = {"headline": "Heads & tokens: p < 1", "reading": f"{coloured('Blue', BLUE)} is more."} | changes
    return Plot(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), **fields)


@pytest.mark.parametrize("layout", [{"title": "a title"}, {"width": 300}, {"height": 300}])
def test_a_figure_with_a_title_or_a_size_is_refused(layout: dict[str, Any]):
    with pytest.raises(ValueError, match="has no title, width or height"):
        Plot(go.Figure(layout=layout), headline="A headline")


def test_a_notebook_shows_the_headline_and_the_reading_as_title():
    drawn: Any = plot().notebook()
    assert drawn.layout.title.text.startswith("<b>Heads &amp; tokens: p &lt; 1</b><br>")
    assert coloured("Blue", BLUE) in drawn.layout.title.text
    assert (drawn.layout.width, drawn.layout.height) > (760, 380) and list(drawn.data[0].y) == [3, 4]


def test_a_notebook_s_figure_holds_the_arrays_that_were_drawn():
    heights = np.array([0.5, 2.5], dtype=np.float32)
    drawn: Any = Plot(go.Figure(go.Scatter(y=heights, marker={"size": heights})), headline="Two points").notebook()
    assert list(drawn.data[0].y) == [0.5, 2.5] == list(drawn.data[0].marker.size)


def test_a_long_headline_is_wrapped_and_makes_the_picture_taller():
    short, long = plot().notebook(), plot(headline="a sentence with a number of words " * 6).notebook()
    short_layout, long_layout = short.to_dict()["layout"], long.to_dict()["layout"]
    assert long_layout["title"]["text"].count("<br>") > short_layout["title"]["text"].count("<br>")
    assert long_layout["height"] > short_layout["height"] and long_layout["width"] == short_layout["width"]


def test_every_colour_of_a_scale_has_a_counterpart_in_the_dark():
    for _, colour in (*SCORE_SCALE, *SIGNED_SCALE, *SHARE_SCALE):
        assert colour in DARK
