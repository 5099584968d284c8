"""A plot: what a figure's function returns, before a page, a notebook or a journal gives it a size and a title."""

from __future__ import annotations

import html
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.figures.arrangement import dressed, narrowed, wrapped

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Plot:
    """A figure, and what the frame around it must know.

    figure: without a title, a size, or a theme; its colours are those of `probe.figures.style`.
    headline: the result in one sentence. reading: how to read the figure; it may hold `coloured` words.
    width, height: the natural size of the plot area in CSS pixels; margins are not included.
    lines: the number of lines of text that the height must hold, which keeps small pictures readable.
    keep: whether the area keeps the ratio of width and height. Otherwise it may stretch to fill a window.
    least_width: CSS pixels below which a page scrolls the plot sideways rather than shrink it.
    narrow: the same for a phone or a column, where it needs another arrangement than panels in one column.
    """

    figure: Figure
    _: KW_ONLY
    headline: str
    reading: str = ""
    width: int = 760
    height: int = 380
    lines: int = 10
    keep: bool = False
    least_width: int = 0
    narrow: Plot | None = None

    def __post_init__(self) -> None:
        layout: Any = self.figure.layout
        if layout.title.text or layout.width or layout.height:
            raise ValueError("a plot's figure has no title, width or height; give them to Plot")

    def arranged(self, *, narrow: bool) -> Plot:
        """Return the plot for a wide or a narrow space; in a narrow one, panels stand in one column."""
        return (self.narrow or narrowed(self)) if narrow else self

    def notebook(self) -> Figure:
        """Return the figure at its natural size, with the headline and the reading as its title."""
        from plotly.graph_objects import Figure

        width = max(self.width + 90, 560)
        lines = [f"<b>{line}</b>" for line in wrapped(html.escape(self.headline, quote=False), width / 9.6)]
        lines += [f"<span style='font-size:13px'>{line}</span>" for line in wrapped(self.reading, width / 6.6)]
        content = dressed(self.figure)
        above = 24 * len(lines) + 26 + content["layout"].get("margin", {}).get("t", 0)
        height = self.height + 80 + above
        figure = Figure(content)
        figure.update_layout(
            title={
                "text": "<br>".join(lines), "font": {"size": 17}, "x": 0.01, "xanchor": "left", "y": 1 - 26 / height,
                "yanchor": "top", "yref": "container",
            },
            legend={"y": 0, "yanchor": "bottom"},
            margin={"t": above},
            width=width,
            height=height,
        )  # fmt: skip
        return figure

    def save(self, path: str | Path, *, width: Literal["column", "page"] = "column") -> Path:
        """Write the plot for print, without its headline, as PNG (300 dpi), SVG or PDF by the suffix; the path.

        width: "column" is 3.4 inches wide, "page" 7 inches. The smallest text has 7 points. The headline and the
        reading belong in the caption. This needs kaleido (the extra "png") and a Chrome or Chromium.
        """
        from probe.figures.pictures import save_print

        return save_print(self, Path(path), width)

    def _repr_mimebundle_(self, *arguments: Any, **options: Any) -> Any:
        return self.notebook()._repr_mimebundle_(*arguments, **options)
