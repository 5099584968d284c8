"""One look for every figure: colours that colour-blind readers can tell apart, a title that says the finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's palette, black text on white.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, MUTED, GRID = "#1F2933", "#6B7785", "#E4E9EE"
FONT = "Inter, Segoe UI, Helvetica Neue, Arial, sans-serif"

SCORE_SCALE = [[0.0, "#F5F7FA"], [0.1, "#D3E5F3"], [0.35, "#7DB5DC"], [0.65, "#2E7AB6"], [1.0, "#08306B"]]
"""From nothing (nearly white) to most (dark blue): sparse scores stay sparse to the eye."""

SHARE_SCALE = [[0.0, "#D55E00"], [0.5, "#F3EBDD"], [1.0, "#0072B2"]]
"""From 0 (vermilion) over 0.5 to 1 (blue)."""


def styled(figure: Figure, *, title: str, subtitle: str = "", width: int = 860, height: int = 480) -> Figure:
    """The figure with this project's look; `title` says the finding, `subtitle` how to read it."""
    text = f"<b>{title}</b>"
    if subtitle:
        text += f"<br><span style='font-size:13px;color:{MUTED}'>{subtitle}</span>"
    figure.update_layout(
        title={
            "text": text, "x": 0.02, "xanchor": "left", "y": 1 - 26 / height, "yanchor": "top", "font": {"size": 18},
        },
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        width=width,
        height=height,
        margin={"l": 70, "r": 30, "t": 96, "b": 64},
        hoverlabel={"bgcolor": "white", "font": {"family": FONT, "size": 13}},
        legend={"bgcolor": "rgba(255,255,255,0.85)"},
    )  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": MUTED, "ticks": "outside", "tickcolor": GRID}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def decimal(value: float, *, digits: int = 2) -> str:
    """A share as this field writes it: .94, 1.00, n/a for NaN."""
    if value != value:
        return "n/a"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text
