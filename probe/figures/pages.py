"""Pages of plots: HTML that fills a window, in light and dark, and opens without a network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from probe.figures.arrangement import dressed
from probe.figures.style import DARK, FONT, GRID, INK, MUTED, PAPER, SIZE
from probe.saving.atomic import write_text

if TYPE_CHECKING:
    from probe.figures.plot import Plot
    from probe.saving.manifest import Manifest

LIBRARY = "plotly.min.js"
DESK_SCALE, PHONE_SCALE = 1.15, 0.95
"""Size of text and markers on a page; in a notebook it is 1."""


def caption_of(manifest: Manifest) -> str:
    """Return the caption of a run's plots: analysis, model, weights, precision, seed and date, then the command."""
    model = manifest.name if manifest.model == manifest.name else f"{manifest.name} ({Path(manifest.model).name})"
    parts = [
        f"{manifest.analysis.replace('_', ' ')} of {model}",
        f"weights {manifest.weights_hash[:12]}" if manifest.weights_hash else "",
        f"{manifest.dtype} on {manifest.device}",
        f"{len(manifest.prompts)} prompts" if len(manifest.prompts) > 1 else "",
        f"seed {manifest.seed}",
        manifest.created[:10],
    ]
    text = ", ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}.\n{manifest.command.replace('__main__.py', 'probe', 1)}"


def save_figures(plots: Mapping[str, Plot], folder: str | Path, *, caption: str, library: str = LIBRARY) -> list[Path]:
    """Write <name>.html for each plot and plotly.min.js once beside them; the pages' paths.

    caption: plain text below each plot; a line after the first is shown as a command. library: the address of another
    copy of plotly.js, which is then not written.
    """
    folder = Path(folder)
    if plots and library == LIBRARY:
        from plotly.offline import get_plotlyjs

        write_text(folder / LIBRARY, get_plotlyjs())
    pages = []
    for name, plot in plots.items():
        pages.append(folder / f"{name}.html")
        write_text(pages[-1], page(plot, name=name, caption=caption, library=library))
    return pages


def page(plot: Plot, *, name: str, caption: str, library: str = LIBRARY) -> str:
    """Return the HTML of a plot's page; `name` is that of the file which its toolbar saves."""
    text, _, command = caption.partition("\n")
    specs = {"wide": _spec(plot, DESK_SCALE), "narrow": _spec(plot.arranged(narrow=True), PHONE_SCALE)}
    content = json.dumps(specs | {"dark": DARK, "name": name}).replace("<", "\\u003c")  # no </script> in it
    return Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8")).substitute(
        headline=html.escape(plot.headline, quote=False),
        reading=_reading(plot.reading),
        caption=html.escape(text, quote=False),
        command=f"<code>{html.escape(command, quote=False)}</code>" if command else "",
        library=html.escape(library),
        content=content,
        light="".join(f"--{colour[1:]}:{colour};" for colour in DARK),
        dark="".join(f"--{colour[1:]}:{other};" for colour, other in DARK.items()),
        font=FONT,
        **{name: f"var(--{colour[1:]})" for name, colour in (("ink", INK), ("muted", MUTED), ("paper", PAPER))},
        grid=f"var(--{GRID[1:]})",
    )


def _spec(plot: Plot, scale: float) -> dict[str, Any]:
    """Return the values with which the page's script draws the plot in one arrangement."""
    from plotly.io import to_json

    return {
        "figure": json.loads(str(to_json(dressed(plot.figure, scale=scale), validate=False))),
        "line": 1.4 * SIZE * scale,
        "width": plot.width,
        "height": plot.height,
        "lines": plot.lines,
        "keep": plot.keep,
        "leastWidth": plot.least_width,
    }


def _reading(text: str) -> str:
    """The reading as HTML: its coloured words are the only markup, and they follow light and dark."""
    escaped = html.escape(text, quote=False)
    span = re.compile(r"&lt;span style='color:#(\w{6})'&gt;(.*?)&lt;/span&gt;")
    return span.sub(r"<b style='color:var(--\1)'>\2</b>", escaped)
