"""Saving Plotly figures so that they open anywhere: pages without a network, and pictures where Chrome is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from probe.saving.atomic import replacing, write_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LIBRARY = "plotly.min.js"
DEFAULT_SIZE = (900, 560)
"""CSS pixels of a picture whose figure names no width or height."""


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Write <name>.html for each figure, with plotly.min.js once beside them; the pages' paths."""
    folder = Path(folder)
    if figures:
        from plotly.offline import get_plotlyjs

        write_text(folder / LIBRARY, get_plotlyjs())
    pages = []
    for name, figure in figures.items():
        page = folder / f"{name}.html"
        with replacing(page) as temporary:
            figure.write_html(temporary, include_plotlyjs=LIBRARY, include_mathjax=False)
        pages.append(page)
    return pages


def save_pictures(figures: Mapping[str, Figure], folder: str | Path, *, scale: float = 2.0) -> list[Path]:
    """Write <name>.png for each figure, `scale` pixels to a CSS pixel; the paths.

    Needs kaleido (the extra "png") and a Chrome or Chromium; an empty list where either is missing or does not start.
    """
    try:
        from plotly.io import write_images
    except ImportError:
        return []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as draft:
        drafts = [Path(draft) / f"{name}.png" for name in figures]
        layouts = [figure.to_dict()["layout"] for figure in figures.values()]  # write_images ignores their sizes
        widths = [layout.get("width") or DEFAULT_SIZE[0] for layout in layouts]
        heights = [layout.get("height") or DEFAULT_SIZE[1] for layout in layouts]
        try:
            write_images(
                list(figures.values()), [str(path) for path in drafts], scale=scale, width=widths, height=heights
            )
        except (ImportError, RuntimeError, ValueError):  # no kaleido (plotly 6 says ValueError), no browser, it failed
            return []
        return [path.replace(folder / path.name) for path in drafts]
