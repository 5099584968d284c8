"""Figures made ready for a space: the theme, text that can be read there, one column of panels where it is narrow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probe.figures.style import INK, LOOK, TITLE_SIZE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from probe.figures.plot import Plot

TITLES = 30
"""CSS pixels above the plot area where panels have titles."""

LENGTHS = frozenset({"ax", "ay", "thickness", "standoff", "ticklen", "xpad", "ypad", "xshift", "yshift"})
"""Keys of Plotly whose values are CSS pixels; so are every "size" and the "width" of a line and an error bar."""


def dressed(figure: Figure, *, scale: float = 1.0, least: float = 0.0) -> dict[str, Any]:
    """Return the figure with this project's theme as a dict for Plotly, `scale` times as large in all but its area.

    least: CSS pixels of the smallest text.
    """
    content = figure.to_dict()
    layout = content["layout"] = {"template": LOOK} | {k: v for k, v in content["layout"].items() if k != "template"}
    titles = [(note, panel) for panel in panels(content) for note in panel.titles]
    for note, panel in titles:
        note |= {"x": panel.left, "xanchor": "left", "font": {"size": TITLE_SIZE, "color": INK}}
    if titles:
        layout["margin"] = {"t": TITLES} | layout.get("margin", {})
    return _scaled(content, scale, least)


@dataclass(frozen=True)
class Panel:
    """A pair of axes that has traces: the names of its axes in the layout, its domain, its title (none or one)."""

    x: str
    y: str
    left: float
    top: float
    titles: list[dict[str, Any]]


def panels(content: dict[str, Any]) -> list[Panel]:
    """Return the panels of a figure's dict, row by row."""
    layout = content["layout"]
    names = {(trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in content["data"]}
    found = []
    for x, y in names:
        across, down = (layout.get(_axis(name), {}).get("domain", [0, 1]) for name in (x, y))
        titles = [
            note
            for note in layout.get("annotations", ())
            if (note.get("xref"), note.get("yref"), note.get("showarrow")) == ("paper", "paper", False)
            and across[0] - 1e-6 <= note["x"] <= across[1] + 1e-6
            and abs(note["y"] - down[1]) < 1e-6
        ]
        found.append(Panel(_axis(x), _axis(y), across[0], down[1], titles))
    return sorted(found, key=lambda panel: (-panel.top, panel.left))


def stacked(plot: Plot) -> Plot:
    """Return the plot with its panels in one column; a plot with one column comes back as it is."""
    from plotly.graph_objects import Figure

    content = plot.figure.to_dict()
    layout, found = content["layout"], panels(content)
    columns = len({panel.left for panel in found})
    if columns < 2:
        return plot
    rows = len({panel.top for panel in found})
    linked = all("matches" in layout[panel.x] for panel in found[1:])
    height = plot.height // rows
    gap = 34 if linked else 76  # room for the title of a panel, and for the ticks and the title of the one above
    total = len(found) * height + (len(found) - 1) * gap
    first: dict[str, Any] = {}
    for place, panel in enumerate(found):
        top = 1 - place * (height + gap) / total
        x, y = layout[panel.x], layout[panel.y]
        if panel.left == min(each.left for each in found):
            first = y  # axes that are shared across a row have labels and a title at its left end only
        x["domain"], y["domain"] = [0, 1], [max(0.0, top - height / total), top]
        if "title" in first:
            y["title"] = first["title"]
        y.pop("showticklabels", None)
        if linked:
            x["showticklabels"] = place == len(found) - 1
            x["title"] = layout[found[-1].x].get("title", {}) if place == len(found) - 1 else {}
        for note in panel.titles:
            note |= {"x": 0, "y": top, "xanchor": "left"}
    return replace(
        plot,
        figure=Figure(content),
        width=plot.width // columns,
        height=total,
        lines=len(found) * (plot.lines // rows + 3),
        least_width=plot.least_width // columns,
    )


def _axis(name: str) -> str:
    """The key of an axis in the layout: "x2" is "xaxis2"."""
    return f"{name[0]}axis{name[1:]}"


def _scaled(node: Any, scale: float, least: float, path: tuple[str, ...] = ()) -> Any:
    """The node with its text, markers, lines and distances scaled; the positions of the data are no lengths."""
    if isinstance(node, dict):
        return {key: _scaled(value, scale, least, (*path, key)) for key, value in node.items()}
    if path and isinstance(node, int | float) and not isinstance(node, bool):
        if path[-1] == "size" and path[-2].endswith("font"):
            return max(least, node * scale)
        return node * scale if _is_length(path) else node
    if isinstance(node, list | tuple) and node and (path[-1] == "size" or not isinstance(node[0], int | float | str)):
        return [_scaled(item, scale, least, path) for item in node]
    return node


def _is_length(path: tuple[str, ...]) -> bool:
    """Whether the last key of the path names a length in CSS pixels."""
    if path[-1] == "width":
        return path[-2] in ("line", "error_x", "error_y")
    return path[-1] == "size" or path[-1] in LENGTHS
