"""Figures of attention sinks: heads, layers, tokens in their text, and the test of the massive dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.sinks.passes import CONDITIONS, MEAN, NONE, ZERO
from probe.analyses.sinks.statistics import share_of_heads
from probe.figures.heads import map_figure
from probe.figures.style import BLUE, GRID, INK, MUTED, SCORE_SCALE, VERMILION, decimal, styled

if TYPE_CHECKING:
    from probe.analyses.sinks.result import Sinks

COLUMNS = 18
"""Tokens in a row of the text figure."""


def mass_map(found: Sinks) -> go.Figure:
    """First-token mass of every head."""
    share = decimal(float(found.first_mass.mean()))
    return map_figure(
        {"attention to the first token": found.first_mass.mean(0)},
        title=f"{share} of the attention of {found.manifest.name} goes to the first token",
        subtitle=f"one cell a head: mean weight on the first token, over the later queries of {len(found.texts)} texts",
    )


def profile(found: Sinks) -> go.Figure:
    """By layer: first-token mass, later sinks, value norm ratio, size of the largest activation."""
    table = found.by_layer()
    titles = (
        "attention to the first token, mean over heads",
        f"later sinks per head ({found.rule.replace('_', ' ')}, {found.threshold:g}, at least {found.min_rows} rows)",
        "norm of the first value over the median norm",
        f"|x| in the residual stream: <span style='color:{VERMILION}'>the largest</span> and "
        f"<span style='color:{MUTED}'>the median</span>",
    )
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.075)
    layer = table["layer"]
    figure.add_trace(
        go.Scatter(
            x=[*layer, *layer[::-1]],
            y=[*table["high"], *table["low"][::-1]],
            fill="toself",
            fillcolor="rgba(0,114,178,0.18)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    lines = (
        (1, "first_mass", BLUE), (2, "later", BLUE), (3, "value_ratio", BLUE), (4, "largest", VERMILION),
        (4, "median", MUTED),
    )  # fmt: skip
    for row, column, colour in lines:
        figure.add_trace(
            go.Scatter(
                x=layer,
                y=table[column],
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 5},
                hovertemplate=f"layer %{{x}}<br>{column.replace('_', ' ')} %{{y:.3g}}<extra></extra>",
                showlegend=False,
            ),
            row=row,
            col=1,
        )
    mass = table["first_mass"]
    strongest = int(mass.idxmax())
    weakest = int(mass[min(3, len(mass) - 1) :].idxmin())  # the first layers have no sinks yet
    band = "; band: 95% bootstrap interval over texts" if len(found.texts) > 1 else ""
    styled(
        figure,
        title=f"The first token gets {decimal(mass[strongest])} of the attention of {found.manifest.name} at layer "
        f"{strongest}, {decimal(mass[weakest])} at layer {weakest}",
        subtitle=f"means over {len(found.texts)} texts{band}",
        width=860,
        height=900,
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(type="log", row=4, col=1, dtick=1, tickformat=",")
    figure.update_xaxes(title_text="layer", row=4, col=1)
    figure.update_xaxes(range=[-0.5, len(table) - 0.5])
    for note in figure.layout.annotations:  # type: ignore[attr-defined]
        note.update(font={"size": 14, "color": INK}, x=0, xanchor="left")
    return figure


def token_figure(found: Sinks) -> go.Figure:
    """The text with the most later sinks, each token coloured by the share of heads whose sink it is."""
    shares = [share_of_heads(found.found(text))[0] for text in range(len(found.texts))]
    text = max(range(len(shares)), key=lambda index: float(shares[index][1:].sum()))
    share, strings = shares[text], found.strings[text]
    rows = -(-len(strings) // COLUMNS)
    cells: list[list[float | None]] = [[None] * COLUMNS for _ in range(rows)]
    words = [[""] * COLUMNS for _ in range(rows)]
    hover = [[""] * COLUMNS for _ in range(rows)]
    for position, string in enumerate(strings):
        row, column = divmod(position, COLUMNS)
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
            colorbar={"thickness": 12, "outlinewidth": 0, "title": {"text": "heads<br>&nbsp;"}, "tickformat": ".0%"},
        )
    )  # fmt: skip
    styled(
        figure,
        title=f"Beside the first token ({float(share[0]):.0%} of heads), {strings[strongest]!r} is the strongest sink "
        f"of {found.texts['name'][text]} ({float(later.max()):.0%})",
        subtitle="the text with the most later sinks; colour: share of heads whose sink the token is (the scale ends "
        f"at the strongest later one); the last {found.min_rows - 1} tokens have too few queries to be judged",
        width=1280,
        height=150 + 27 * rows,
    )
    figure.update_layout(margin={"l": 20, "t": 96, "b": 20})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    return figure


def cause_figure(found: Sinks) -> go.Figure:
    """Loss and attention to the first token under each condition, a point a text and a bar for the mean."""
    table = found.causes
    names = [name for name in CONDITIONS if (table["condition"] == name).any()]
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("loss on the text, nats per token", "attention to the first token"),
        horizontal_spacing=0.12,
    )  # fmt: skip
    for column, value in ((1, "loss"), (2, "attention")):
        figure.add_trace(
            go.Bar(
                x=names,
                y=[found.condition(name, value) for name in names],
                marker={
                    "color": [VERMILION if name == ZERO else GRID if name == NONE else "#BFD9EA" for name in names]
                },
                hovertemplate="%{x}<br>mean %{y:.3f}<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
        figure.add_trace(
            go.Scatter(
                x=table["condition"],
                y=table[value],
                mode="markers",
                marker={"color": INK, "size": 6, "opacity": 0.7},
                customdata=table[["text", "dim"]],
                hovertemplate="%{customdata[0]}, dim %{customdata[1]}<br>%{y:.3f}<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    layer, name = int(table["layer"].iloc[0]), found.manifest.name
    mean = found.condition(MEAN)
    repaired = "" if mean != mean else f", set to its mean {mean:.2f}"
    styled(
        figure,
        title=f"Dimension {found.dims[0]} zeroed on the first token: loss of {name} {found.condition(NONE):.2f} to "
        f"{found.condition(ZERO):.2f}{repaired}",
        subtitle=f"first token's stream set after layer {layer}; bars: means, a dot a text; attention: mean over the "
        f"layers after it",
        width=980,
        height=480,
    )
    figure.update_layout(margin={"t": 116})
    figure.update_xaxes(
        tickmode="array", tickvals=names, ticktext=[name.replace(" ", "<br>", 1) for name in names], tickangle=0,
        showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_annotations(font={"size": 14, "color": INK})
    return figure


def _shown(string: str) -> str:
    """A token as text in a cell: its blanks visible, and no longer than the cell."""
    visible = string.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").strip(" ")
    visible = visible or "\N{OPEN BOX}" * max(1, len(string))
    visible = visible if len(visible) <= 9 else visible[:8] + "\N{HORIZONTAL ELLIPSIS}"
    return visible.replace("<", "&lt;")
