"""Figures made ready for a space: the theme, text that can be read there, one column of panels where it is narrow."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probe.figures.style import INK, LOOK, TITLE_SIZE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from probe.figures.plot import Plot

TITLES, LINE = 30, 18
"""CSS pixels above the plot area where panels have titles of one line, and what another line takes."""

NARROW = 280
"""CSS pixels of the plot area on a phone or in a column, about."""

ACROSS, DOWN = 42, 24
"""Characters in a line of the text above or below a narrow panel, and beside it."""

LENGTHS = frozenset({"ax", "ay", "thickness", "standoff", "ticklen", "xpad", "ypad", "xshift", "yshift"})
"""Keys of Plotly whose values are CSS pixels; so are every "size" and the "width" of a line and an error bar."""


def dressed(figure: Figure, *, scale: float = 1.0, least: float = 0.0) -> dict[str, Any]:
    """Return the figure with this project's theme as a dict for Plotly, all but its area multiplied by `scale`.

    least: CSS pixels of the smallest text.
    """
    content = content_of(figure)
    layout = content["layout"] = {"template": LOOK} | {k: v for k, v in content["layout"].items() if k != "template"}
    found = panels(content)
    titles = [(note, panel) for panel in found for note in panel.titles]
    for note, panel in titles:
        note |= {"x": panel.left, "xanchor": "left", "align": "left", "font": {"size": TITLE_SIZE, "color": INK}}
    if titles:
        highest = max(panel.top for _, panel in titles)
        lines = max(note["text"].count("<br>") for note, panel in titles if panel.top == highest)
        layout["margin"] = {"t": TITLES + LINE * lines} | layout.get("margin", {})
    axes = [layout[name] for name in layout if name.startswith("coloraxis")]
    for bar in (each["colorbar"] for each in (*content["data"], *axes) if "colorbar" in each):
        if bar.get("title", {}).get("text"):
            bar["title"] = {"text": f"{bar['title']['text']}<br>&nbsp;"}  # clear of the first tick
    content = _scaled(content, scale, least)
    for axis in (content["layout"].setdefault(name, {}) for panel in found for name in (panel.x, panel.y)):
        if not axis.get("title", {}).get("text"):
            # Plotly sets the labels of an axis without a title so close to the border that their edge is lost
            axis["title"] = {"text": "&nbsp;", "font": {"size": 1}, "standoff": 4}
    return content


def content_of(figure: Figure) -> dict[str, Any]:
    """Return a copy of the figure as a dict whose arrays stay arrays; `figure.to_dict()` packs them as base64."""
    traces: Any = figure.data
    layout: Any = figure.layout
    return {"data": [trace.to_plotly_json() for trace in traces], "layout": layout.to_plotly_json()}


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


def narrowed(plot: Plot) -> Plot:
    """Return the plot for a narrow space: its panels in one column, long titles in several lines."""
    from plotly.graph_objects import Figure

    content = content_of(plot.figure)
    layout, found = content["layout"], panels(content)
    above = {panel.left: panel.titles[0] for panel in reversed(found) if panel.titles}
    for panel in found:
        if not panel.titles and panel.left in above:  # the title of its column stands above another panel
            panel.titles.append(dict(above[panel.left]))
            layout["annotations"] = [*layout["annotations"], *panel.titles]
        for note in panel.titles:
            note["text"] = "<br>".join(wrapped(note["text"], ACROSS))
        for name, width in ((panel.x, ACROSS), (panel.y, DOWN)):
            title = layout.get(name, {}).get("title", {})
            if title.get("text"):
                title["text"] = "<br>".join(wrapped(title["text"], width))
    lefts, rows = sorted({panel.left for panel in found}), len({panel.top for panel in found})
    height = plot.height * NARROW * len(lefts) // plot.width
    if len(lefts) > 1:
        height = _stack(layout, found, height // rows)
    elif not plot.keep:
        height = max(height, round(0.65 * NARROW))
    return replace(
        plot,
        figure=Figure(content),
        width=NARROW,
        height=height,
        lines=max(plot.lines * len(found) // rows, 9 * len(found) if len(found) > 1 else 0),
        least_width=plot.least_width // len(lefts),
    )


def wrapped(text: str, width: float) -> list[str]:
    """Return the text in lines of at most about `width` characters; a last line of one word is avoided."""
    count = -(-_letters(text) // width)
    lines: list[str] = []
    for word in re.findall(r"(?:<[^>]*>|\S)+", text):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _letters(joined) <= _letters(text) / count + 4:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _letters(text: str) -> int:
    """The number of characters that are seen: tags are not, and an entity is one."""
    return len(html.unescape(re.sub("<[^>]*>", "", text)))


def _stack(layout: dict[str, Any], found: list[Panel], height: int) -> int:
    """Put the panels below one another, each of that height; the height of all in CSS pixels."""
    linked = sum("matches" not in layout[panel.x] for panel in found) == 1  # all axes are one
    longest = max((note["text"].count("<br>") for panel in found for note in panel.titles), default=0)
    # the title of a panel, and the ticks and the title of the one above
    gap = LINE * longest + (34 if linked else 76 if any("text" in layout[p.x].get("title", {}) for p in found) else 64)
    total = len(found) * height + (len(found) - 1) * gap
    feet = {panel.left: layout[panel.x].get("title", {}) for panel in found}
    first: dict[str, Any] = {}
    for place, panel in enumerate(found):
        top = 1 - place * (height + gap) / total
        x, y = layout[panel.x], layout[panel.y]
        if panel.left == min(each.left for each in found):
            first = y  # axes that are shared across a row have their labels and title at its left end only
        x["domain"], y["domain"] = [0, 1], [max(0.0, top - height / total), top]
        if "title" in first:
            y["title"] = first["title"]
        y.pop("showticklabels", None)
        ends = not linked or place == len(found) - 1  # and those that are shared down a column at its foot
        x |= {"showticklabels": ends, "title": feet[panel.left] if ends else {}}
        for note in panel.titles:
            note |= {"x": 0, "y": top, "xanchor": "left"}
    return total


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
    if path and path[-1] == "size" and (unpacked := getattr(node, "tolist", None)):
        node = unpacked()
    if isinstance(node, list | tuple) and node and (path[-1] == "size" or not isinstance(node[0], int | float | str)):
        return [_scaled(item, scale, least, path) for item in node]
    return node


def _is_length(path: tuple[str, ...]) -> bool:
    """Return whether the last key of the path names a length in CSS pixels."""
    if path[-1] == "width":
        return path[-2] in ("line", "error_x", "error_y")
    return path[-1] == "size" or path[-1] in LENGTHS
