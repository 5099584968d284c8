"""The look of every figure: fonts, colours and margins, in light and in dark.

A figure names its colours by the constants below. They are the light ones; `DARK` says what stands for each of them
on a dark page, so a figure is written once. Sizes are in CSS pixels for a page on a desk; phones and print scale them.
"""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart, dark text on white.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, MUTED, GRID, PAPER = "#1F2933", "#5F6B78", "#E4E9EE", "#FFFFFF"
PALE, PALE_BLUE = "#B8C2CC", "#BFD9EA"
FONT = "Inter, Segoe UI, Helvetica Neue, Arial, sans-serif"

SCORE_SCALE = [[0.0, "#F5F7FA"], [0.1, "#D3E5F3"], [0.35, "#7DB5DC"], [0.65, "#2E7AB6"], [1.0, "#08306B"]]
"""From nothing (nearly the paper) to most (dark blue): sparse scores stay sparse to the eye."""

SIGNED_SCALE = [[0.0, "#8A3B00"], [0.3, "#E69F6B"], [0.5, "#F5F7FA"], [0.7, "#7DB5DC"], [1.0, "#08306B"]]
"""From -1 (brown) over 0 (nearly the paper) to 1 (dark blue, as in the unsigned scale)."""

SHARE_SCALE = [[0.0, "#D55E00"], [0.5, "#F3EBDD"], [1.0, "#0072B2"]]
"""From 0 (vermilion) over 0.5 to 1 (blue)."""

DARK = {
    PAPER: "#12171D", INK: "#E8EDF2", MUTED: "#9DA9B5", GRID: "#2B343E", PALE: "#56626F", PALE_BLUE: "#2A567A",
    BLUE: "#4BA3E3", ORANGE: "#F0B13C", GREEN: "#2DBE94", PURPLE: "#DE95BC", SKY: "#A3D8F7", VERMILION: "#F47B33",
    "#F5F7FA": "#1C242D", "#D3E5F3": "#1F3B55", "#7DB5DC": "#2F6D9F", "#2E7AB6": "#5FAEE3", "#08306B": "#D9EEFF",
    "#8A3B00": "#FFDFC2", "#E69F6B": "#B5652B", "#F3EBDD": "#3A3834",
}  # fmt: skip
"""The colour that stands for each colour on a dark page. A scale runs from the paper to bright there."""

SIZE, TITLE_SIZE = 13, 14
"""CSS pixels of a figure's text, and of the title of a panel."""

AXIS = {
    "gridcolor": GRID, "zeroline": False, "linecolor": MUTED, "ticks": "outside", "tickcolor": GRID, "ticklen": 4,
    "automargin": True, "title": {"standoff": 8, "font": {"size": SIZE}},
}  # fmt: skip
BAR = {
    "thickness": 12, "outlinewidth": 0, "tickfont": {"color": MUTED}, "ticklen": 3, "tickcolor": GRID,
    "title": {"font": {"size": SIZE}}, "nticks": 4,
}  # fmt: skip
LOOK: dict[str, Any] = {
    "layout": {
        "font": {"family": FONT, "size": SIZE, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": {"l": 8, "r": 16, "t": 12, "b": 8},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "font": {"family": FONT, "size": SIZE, "color": INK}},
        "legend": {
            "orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top", "maxheight": 1,
            "bgcolor": "rgba(0,0,0,0)",
        },
        "xaxis": AXIS,
        "yaxis": AXIS,
        "coloraxis": {"colorbar": BAR},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
    },
    "data": {"heatmap": [{"type": "heatmap", "colorbar": BAR}]},
}  # fmt: skip
"""Plotly's template of this project. A figure's layout goes before it."""


def coloured(text: str, colour: str) -> str:
    """Return the text as a span in one of the colours above, for a figure's reading and the titles of its panels."""
    return f"<span style='color:{colour}'>{text}</span>"
