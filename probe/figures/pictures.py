"""Pictures of plots: PNGs beside the pages, and files for print. Both are drawn by kaleido, in a Chrome or Chromium."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from probe.errors import ProbeError, UsageError
from probe.figures.arrangement import TITLES, dressed
from probe.saving.atomic import replacing

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from probe.figures.plot import Plot

INCHES = {"column": 3.4, "page": 7.0}
DPI = 300
CSS_DPI = 96
LEAST_TEXT = 7 * CSS_DPI / 72
"""CSS pixels of 7 points."""

PRINT_SCALE = 0.75
"""Size of text and markers in print, where a page on a desk has 1: 13 pixels become 7.3 points."""

FAILURES = (ImportError, RuntimeError, ValueError)
"""The errors raised without kaleido (plotly 6: ValueError), without a browser, or where one fails."""


def save_pictures(plots: Mapping[str, Plot], folder: str | Path, *, scale: float = 2.0) -> list[Path]:
    """Write <name>.png for each plot as a notebook shows it, `scale` pixels to a CSS pixel; the paths.

    This needs kaleido (the extra "png") and a Chrome or Chromium; without them the list is empty.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as draft:
        drafts = [Path(draft) / f"{name}.png" for name in plots]
        try:
            _draw([plot.notebook() for plot in plots.values()], drafts, scale=scale)
        except FAILURES:
            return []
        return [path.replace(folder / path.name) for path in drafts]


def save_print(plot: Plot, path: Path, width: Literal["column", "page"]) -> Path:
    """Write a plot for print, as `Plot.save` describes; the path."""
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"expected a path that ends in .png, .svg or .pdf, got {path}")
    if width not in INCHES:
        raise UsageError(f'expected width="column" or width="page", got {width!r}')
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            _draw([printed(plot, width)], [temporary], scale=DPI / CSS_DPI if suffix == ".png" else 1.0)
        except FAILURES as error:
            raise ProbeError(
                f"{path} was not drawn; that needs kaleido (pip install 'attention-probe[png]') and a Chrome or "
                f"Chromium: {str(error).strip().splitlines()[0]}"
            ) from None
        if suffix == ".png":
            temporary.write_bytes(_with_density(temporary.read_bytes()))
    return path


def printed(plot: Plot, width: Literal["column", "page"]) -> Figure:
    """Return the figure as it is printed: its width and height in CSS pixels, 96 to the inch."""
    from plotly.graph_objects import Figure

    plot = plot.arranged(narrow=width == "column")
    figure = Figure(dressed(plot.figure, scale=PRINT_SCALE, least=LEAST_TEXT))
    across = round(INCHES[width] * CSS_DPI)
    area = across - 60  # the axis at the left, or a colour bar at the right: what they take is known when it is drawn
    height = max(area * plot.height / plot.width, 1.4 * LEAST_TEXT * plot.lines)
    legend = _legend_height(figure.to_dict(), across)
    top = figure.to_dict()["layout"].get("margin", {}).get("t", 0)
    figure.update_layout(width=across, height=round(height + 2 * TITLES + legend), margin={"t": top + legend})
    return figure


def _legend_height(content: dict[str, Any], width: int) -> float:
    """About the height in CSS pixels of the legend above the panels, as Plotly sets it: columns of equal width."""
    size = content["layout"]["template"]["layout"]["font"]["size"]
    names = [trace["name"] for trace in content["data"] if trace.get("name") and trace.get("showlegend", True)]
    if len(content["data"]) < 2 or not names or content["layout"].get("showlegend") is False:
        return 0.0
    entries = [45 + 0.56 * size * len(name) for name in names]
    columns = len(names) if sum(entries) <= width - 60 else max(1, int((width - 60) // max(entries)))
    return 1.5 * size * -(-len(names) // columns)


def _draw(figures: list[Figure], paths: list[Path], *, scale: float) -> None:
    """Draw the figures, whose layouts hold their sizes, in one browser."""
    from plotly.io import write_images

    layouts = [figure.to_dict()["layout"] for figure in figures]  # write_images ignores their sizes
    sizes = {side: [layout[side] for layout in layouts] for side in ("width", "height")}
    write_images(figures, [str(path) for path in paths], scale=scale, **sizes)


def _with_density(png: bytes) -> bytes:
    """The PNG with its resolution written in it, so that it comes out in inches: a pHYs chunk after the header."""
    header = 33  # signature and IHDR
    content = b"pHYs" + struct.pack(">IIB", *[round(DPI / 0.0254)] * 2, 1)
    return png[:header] + struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content)) + png[header:]
