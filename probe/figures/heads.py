"""Figures of head scores: maps of layers and heads, one score against another, and which scores go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from probe.figures.plot import Plot
from probe.figures.style import BLUE, GRID, INK, MUTED, PAPER, SCORE_SCALE, SIGNED_SCALE, VERMILION
from probe.frame.scores import label
from probe.frame.tables import decimal
from probe.heads import Head


def map_figure(maps: Mapping[str, Tensor], *, headline: str, reading: str = "") -> Plot:
    """Draw maps [layers, heads], one panel a score: layers across, heads down.

    Scores with negative values (copying) go from -1 to 1, the others from 0 to 1. Heads without a score are blank.
    """
    layers, heads = next(iter(maps.values())).shape
    signed = {kind: bool((values < 0).any()) for kind, values in maps.items()}
    columns = 1 if layers > 48 or len(maps) in (1, 3) else 2
    cell = 24 if columns == 1 else 15
    rows = -(-len(maps) // columns)
    panel_width, panel_height = max(300, min(900, cell * layers)), max(110, min(460, cell * heads))
    between = 46
    height = rows * panel_height + (rows - 1) * between
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        subplot_titles=[label(kind) for kind in maps],
        horizontal_spacing=0.05 if columns > 1 else 0,
        vertical_spacing=between / height if rows > 1 else 0,
    )
    names = [[str(Head(layer, head)) for layer in range(layers)] for head in range(heads)]
    for index, (kind, values) in enumerate(maps.items()):
        row, column = divmod(index, columns)
        figure.add_trace(
            go.Heatmap(
                z=values.double().T.tolist(),
                customdata=names,
                coloraxis="coloraxis2" if signed[kind] else "coloraxis",
                xgap=1,
                ygap=1,
                hoverongaps=False,
                hovertemplate=f"%{{customdata}}<br>{label(kind)} %{{z:.3f}}<extra></extra>",
            ),
            row=row + 1,
            col=column + 1,
        )
    # two scales share the height of the figure
    both = len(set(signed.values())) > 1
    upper = {"title": {"text": "share"}} | ({"len": 0.5, "y": 1, "yanchor": "top"} if both else {"len": 1})
    lower = {"title": {"text": "copying"}} | ({"len": 0.5, "y": 0, "yanchor": "bottom"} if both else {"len": 1})
    figure.update_layout(
        coloraxis={"colorscale": SCORE_SCALE, "cmin": 0, "cmax": 1, "colorbar": upper},
        coloraxis2={"colorscale": SIGNED_SCALE, "cmin": -1, "cmax": 1, "colorbar": lower},
    )
    figure.update_xaxes(dtick=_step(layers), showgrid=False, ticks="", range=[-0.5, layers - 0.5])
    figure.update_yaxes(dtick=_step(heads), showgrid=False, ticks="", range=[heads - 0.5, -0.5])
    figure.update_xaxes(title_text="layer", row=rows)
    figure.update_yaxes(title_text="head", col=1)
    return Plot(
        figure,
        headline=headline,
        reading=reading,
        width=panel_width * columns,
        height=height,
        lines=rows * (2 + -(-heads // _step(heads))) - 2,
        keep=True,
    )


def scatter_figure(
    x: Tensor,
    y: Tensor,
    *,
    x_name: str,
    y_name: str,
    headline: str,
    reading: str = "",
    marked: Sequence[Head] = (),
    labels: int = 8,
) -> Plot:
    """Draw `x` against `y` [layers, heads], a point a head; `marked` ones in colour, the first `labels` named."""
    layers, heads = x.shape
    chosen = set(marked)
    rest = [head for head in (Head(*divmod(i, heads)) for i in range(layers * heads)) if head not in chosen]
    both = torch.stack([x.double(), y.double()]).nan_to_num(0)
    low, high = min(0.0, float(both.min())), max(1.0, float(both.max()))
    figure = go.Figure(
        go.Scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": GRID, "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for group, colour, size in ((rest, BLUE, 6), (list(marked), VERMILION, 9)):
        figure.add_trace(
            go.Scatter(
                x=[float(x[head]) for head in group],
                y=[float(y[head]) for head in group],
                mode="markers",
                marker={"color": colour, "size": size, "opacity": 0.75, "line": {"color": PAPER, "width": 1}},
                customdata=[str(head) for head in group],
                hovertemplate=f"%{{customdata}}<br>{x_name} %{{x:.3f}}<br>{y_name} %{{y:.3f}}<extra></extra>",
                showlegend=False,
            )
        )
    ends = [low - 0.04 * (high - low), high + 0.12 * (high - low)]  # names stand above and at the right
    figure.update_xaxes(title_text=x_name, range=ends)
    figure.update_yaxes(title_text=y_name, range=ends)
    named = list(marked[:labels])
    for head, (ax, ay) in zip(named, _offsets([(float(x[h]), float(y[h])) for h in named]), strict=True):
        figure.add_annotation(
            x=float(x[head]), y=float(y[head]), text=str(head), ax=ax, ay=ay, font={"size": 12, "color": INK},
            showarrow=True, arrowhead=0, arrowwidth=1, arrowcolor=MUTED,
        )  # fmt: skip
    return Plot(figure, headline=headline, reading=reading, width=620, height=560, lines=16, keep=True)


def correlation_figure(table: pd.DataFrame, kinds: Sequence[str], *, name: str) -> Plot:
    """Draw the matrix of the pairwise correlations: Pearson below the diagonal, Spearman above."""
    place = {kind: index for index, kind in enumerate(kinds)}
    cells: list[list[float | None]] = [[None] * len(kinds) for _ in kinds]
    hover = [[""] * len(kinds) for _ in kinds]
    for row in table.to_dict("records"):
        first, second = sorted((place[row["a"]], place[row["b"]]))
        pair = f"{label(row['a'])} and {label(row['b'])}"
        cells[second][first], cells[first][second] = row["pearson"], row["spearman"]
        hover[second][first] = f"{pair}<br>Pearson {row['pearson']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        hover[first][second] = f"{pair}<br>Spearman {row['spearman']:.3f}"
    labels = [label(kind) for kind in kinds]
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            x=labels,
            y=labels,
            customdata=hover,
            text=[["" if cell is None else decimal(round(cell, 2) + 0.0) for cell in row] for row in cells],
            texttemplate="%{text}",
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale=SIGNED_SCALE,
            zmin=-1,
            zmax=1,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_yaxes(showgrid=False, ticks="", autorange="reversed")
    ranked = table.dropna(subset=["pearson"]).sort_values("pearson", key=abs, ascending=False).to_dict("records")
    return Plot(
        figure,
        headline=f"Among the scores of the heads of {name}, {label(ranked[0]['a'])} and {label(ranked[0]['b'])} "
        f"correlate most: Pearson {decimal(ranked[0]['pearson'])}"
        if ranked
        else f"No two scores of the heads of {name} have a correlation",
        reading="Correlations over all heads: Pearson below the diagonal, Spearman above.",
        width=560,
        height=440,
        lines=2 * len(kinds),
        keep=True,
    )


def _offsets(points: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """Where the label of each point goes, in pixels from it: the first of eight sides that is clear of the others."""
    sides = [(26, -22), (-26, -22), (26, 22), (-26, 22), (38, 0), (-38, 0), (0, -32), (0, 32)]
    scale = 480  # pixels per unit, about
    taken = [(x * scale, -y * scale) for x, y in points]
    placed = []
    for x, y in points:
        at = (x * scale, -y * scale)
        others = [other for other in taken if other != at]
        clear = [_clearance((at[0] + dx, at[1] + dy), others) for dx, dy in sides]
        best = next((i for i, room in enumerate(clear) if room > 34), max(range(len(sides)), key=clear.__getitem__))
        placed.append(sides[best])
        taken.append((at[0] + sides[best][0], at[1] + sides[best][1]))
    return placed


def _clearance(place: tuple[float, float], others: list[tuple[float, float]]) -> float:
    """Distance in pixels to the nearest of the others; labels are wider than high, so across counts half."""
    return min((max(abs(place[0] - x) / 2, abs(place[1] - y)) * 2 for x, y in others), default=float("inf"))


def _step(count: int) -> int:
    """Spacing of tick marks that leaves at most about 16 of them."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 16)
