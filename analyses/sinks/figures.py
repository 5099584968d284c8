"""Plots of attention sinks: heads, layers, tokens in their text, and the test of the massive dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.sinks.passes import CONDITIONS, MEAN, NONE, ZERO
from probe.analyses.sinks.statistics import share_of_heads
from probe.figures.heads import map_figure
from probe.figures.plot import Plot
from probe.figures.style import BLUE, GRID, INK, MUTED, PALE_BLUE, SCORE_SCALE, VERMILION, coloured

if TYPE_CHECKING:
    from probe.analyses.sinks.result import Sinks

COLUMNS, NARROW_COLUMNS = 18, 6
"""Tokens in a row of the text figure, and of the one for a phone or a column."""


def mass_map(found: Sinks) -> Plot:
    """Draw the first-token mass of every head."""
    return map_figure(
        {"attention to the first token": found.first_mass.mean(0)},
        headline=f"{float(found.first_mass.mean()):.0%} of the attention of {found.manifest.name} goes to the first "
        "token",
        reading="Each cell is a head: its mean weight on the first token, over the later queries of "
        f"{len(found.texts)} texts.",
    )


def profile(found: Sinks) -> Plot:
    """Draw by layer: first-token mass, later sinks, value norm ratio, size of the largest activation."""
    table = found.by_layer()
    titles = (
        "attention to the first token, mean over heads",
        f"later sinks per head ({found.rule.replace('_', ' ')}, {found.threshold:g}, at least {found.min_rows} rows)",
        "norm of the first value over the median norm",
        f"|x| in the residual stream: {coloured('the largest', VERMILION)} and {coloured('the median', MUTED)}",
    )
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.075)
    layer = table["layer"]
    figure.add_scatter(
        x=[*layer, *layer[::-1]],
        y=[*table["high"], *table["low"][::-1]],
        fill="toself",
        fillcolor="rgba(0,114,178,0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    lines = (
        (1, "first_mass", BLUE), (2, "later", BLUE), (3, "value_ratio", BLUE), (4, "largest", VERMILION),
        (4, "median", MUTED),
    )  # fmt: skip
    for row, column, colour in lines:
        figure.add_scatter(
            x=layer,
            y=table[column],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            hovertemplate=f"layer %{{x}}<br>{column.replace('_', ' ')} %{{y:.3g}}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
    mass = table["first_mass"]
    strongest = int(mass.idxmax())
    weakest = int(mass[min(3, len(mass) - 1) :].idxmin())  # the first layers have no sinks yet
    band = " The band is the 95% bootstrap interval over texts." if len(found.texts) > 1 else ""
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(type="log", row=4, col=1, dtick=1, tickformat=",")
    figure.update_xaxes(title_text="layer", row=4, col=1)
    figure.update_xaxes(range=[-0.5, len(table) - 0.5])
    return Plot(
        figure,
        headline=f"The first token gets {mass[strongest]:.0%} of the attention of {found.manifest.name} at layer "
        f"{strongest} and {mass[weakest]:.0%} at layer {weakest}",
        reading=f"Means over {len(found.texts)} texts.{band}",
        height=740,
        lines=28,
    )


def token_figure(found: Sinks, *, columns: int = COLUMNS) -> Plot:
    """Draw the text with the most later sinks, each token coloured by the share of heads whose sink it is."""
    shares = [share_of_heads(found.found(text))[0] for text in range(len(found.texts))]
    text = max(range(len(shares)), key=lambda index: float(shares[index][1:].sum()))
    share, strings = shares[text], found.strings[text]
    rows = -(-len(strings) // columns)
    cells: list[list[float | None]] = [[None] * columns for _ in range(rows)]
    words = [[""] * columns for _ in range(rows)]
    hover = [[""] * columns for _ in range(rows)]
    for position, string in enumerate(strings):
        row, column = divmod(position, columns)
        cells[row][column] = float(share[position])
        words[row][column] = _shown(string)
        hover[row][column] = f"token {position} {string!r}<br>sink of {float(share[position]):.1%} of the heads"
    later = share[1:]
    strongest = int(later.argmax()) + 1
    most = max(0.05, float(later.max()))
    figure = go.Figure(
        go.Heatmap(
            z=cells, text=words, texttemplate="%{text}", textfont={"size": 12}, customdata=hover,
            hovertemplate="%{customdata}<extra></extra>", colorscale=SCORE_SCALE, zmin=0, zmax=most, xgap=1, ygap=2,
            hoverongaps=False,
            colorbar={"title": {"text": "heads"}, "tickformat": ".0%"},
        )
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    return Plot(
        figure,
        headline=f"Beside the first token ({float(share[0]):.0%} of heads), {strings[strongest]!r} is the strongest "
        f"sink of {found.texts['name'][text]} ({float(later.max()):.0%})",
        reading="The text with the most later sinks. Colour is the share of heads whose sink the token is; the scale "
        f"ends at the strongest later one. The last {found.min_rows - 1} tokens have too few queries to be judged.",
        width=64 * columns,
        height=27 * rows,
        lines=round(1.4 * rows),
        narrow=token_figure(found, columns=NARROW_COLUMNS) if columns == COLUMNS else None,
    )


def cause_figure(found: Sinks) -> Plot:
    """Draw the loss and the attention to the first token under each condition: a dot a text, a bar for the mean."""
    table = found.causes
    names = [name for name in CONDITIONS if (table["condition"] == name).any()]
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("loss on the text, nats per token", "attention to the first token"),
        horizontal_spacing=0.12,
    )  # fmt: skip
    for column, value in ((1, "loss"), (2, "attention")):
        figure.add_bar(
            x=names,
            y=[found.condition(name, value) for name in names],
            marker={
                "color": [VERMILION if name == ZERO else GRID if name == NONE else PALE_BLUE for name in names]
            },
            hovertemplate="%{x}<br>mean %{y:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=table["condition"],
            y=table[value],
            mode="markers",
            marker={"color": INK, "size": 6, "opacity": 0.7},
            customdata=table[["text", "dim"]],
            hovertemplate="%{customdata[0]}, dim %{customdata[1]}<br>%{y:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    mean = found.condition(MEAN)
    repaired = "" if mean != mean else f"; setting it to its mean gives {mean:.2f}"
    figure.update_xaxes(
        tickmode="array", tickvals=names, ticktext=[name.replace(" ", "<br>", 1) for name in names], tickangle=0,
        showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return Plot(
        figure,
        headline=f"Setting dimension {found.dims[0]} of the first token to zero changes the loss of "
        f"{found.manifest.name} from {found.condition(NONE):.2f} to {found.condition(ZERO):.2f} nats{repaired}",
        reading=f"The first token's stream is set after layer {int(table['layer'].iloc[0])}. Bars are means and each "
        "dot is a text. Attention is the mean over the layers after it.",
        width=840,
        height=320,
    )


def _shown(string: str) -> str:
    """Return a token as the text of a cell: its blanks visible, and no longer than the cell."""
    visible = string.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").strip(" ")
    visible = visible or "\N{OPEN BOX}" * max(1, len(string))
    visible = visible if len(visible) <= 9 else visible[:8] + "\N{HORIZONTAL ELLIPSIS}"
    return visible.replace("<", "&lt;")
