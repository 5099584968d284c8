"""Plots of the causal check: what pruning does to retrieval, and to tasks that need none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.figures.plot import Plot
from probe.figures.style import BLUE, SKY, VERMILION

if TYPE_CHECKING:
    from probe.analyses.heads.validation import Validation

LINES = {
    "top": ("highest-scoring heads", VERMILION, "circle", "solid"),
    "random": ("random heads", BLUE, "square", "solid"),
    "same layers": ("random heads of the same layers", SKY, "diamond", "dash"),
}
FILLS = {"zero": "output removed (zero)", "uniform": "even attention (uniform, the official mask)"}


def needle_curves(checked: Validation) -> Plot:
    """Draw needle accuracy against the number of heads pruned, a panel a fill, and random controls with intervals."""
    figure = _panels(checked, [FILLS[fill] for fill in checked.fills])
    for column, fill in enumerate(checked.fills, start=1):
        _add_lines(figure, checked, "needles", fill, row=1, column=column)
    figure.update_yaxes(range=[-0.04, 1.06], tickformat=".0%")
    figure.update_yaxes(title_text="held-out needles retrieved", col=1)
    figure.update_xaxes(title_text="heads pruned", tickvals=[0, *checked.ks])
    fewest = min((k for k in checked.ks), default=0)
    fill = checked.fills[0]
    without, control = (checked.value("needles", group, fewest, fill) for group in ("top", "random"))
    base = checked.row("needles", "none")
    return Plot(
        figure,
        headline=f"Without its {fewest} retrieval heads {checked.manifest.name} retrieves {without:.0%} of the "
        f"needles, without {fewest} random ones {control:.0%}",
        reading=f"{int(base['samples'])} held-out needles, of which the unpruned model retrieves {base['value']:.0%}. "
        f"Heads are pruned {'while the answer is written' if checked.phase == 'decode' else 'in reading and writing'}. "
        "Bars are 95% intervals.",
        width=440 * len(checked.fills),
        height=300,
    )


def specificity_curves(checked: Validation) -> Plot:
    """Draw the closed-book accuracy above and the rise of the loss on prose below, one column a fill."""
    figure = _panels(checked, [FILLS[fill] for fill in checked.fills], rows=2)
    for column, fill in enumerate(checked.fills, start=1):
        _add_lines(figure, checked, "closed book", fill, row=1, column=column)
        _add_lines(figure, checked, "prose", fill, row=2, column=column, value="rise")
    figure.update_yaxes(range=[-0.04, 1.06], tickformat=".0%", row=1)
    figure.update_yaxes(title_text="closed-book answers right", row=1, col=1)
    figure.update_yaxes(title_text="rise of the loss on prose, nats", row=2, col=1)
    table = checked.conditions
    columns = ["rise", "rise_low", "rise_high"]  # NaN for the other tasks, the bounds also for a single passage
    rises = np.asarray(table.loc[table["task"] == "prose", columns], dtype=float)
    low, high = float(np.nanmin(rises)), float(np.nanmax(rises))
    figure.update_yaxes(range=[low - 0.06 * (high - low) - 0.01, high + 0.06 * (high - low) + 0.01], row=2)
    figure.update_xaxes(tickvals=[0, *checked.ks])
    figure.update_xaxes(title_text="heads pruned", row=2)
    k = sorted(checked.ks)[min(1, len(checked.ks) - 1)]
    pruned = ", ".join(f"{checked.value('closed book', 'top', k, fill):.0%} ({fill})" for fill in checked.fills)
    return Plot(
        figure,
        headline=f"The unpruned model answers {checked.value('closed book', 'none'):.0%} of the closed-book questions, "
        f"without {k} retrieval heads {pruned}",
        reading="Both measures need no copying. For the loss, heads are pruned at all positions. Bars are 95% "
        "intervals.",
        width=440 * len(checked.fills),
        height=540,
        lines=24,
    )


def _panels(checked: Validation, titles: list[str], *, rows: int = 1) -> go.Figure:
    return make_subplots(
        rows=rows,
        cols=len(checked.fills),
        shared_yaxes=True,
        shared_xaxes=True,
        subplot_titles=titles,
        horizontal_spacing=0.05,
        vertical_spacing=0.09,
    )


def _add_lines(
    figure: go.Figure, checked: Validation, task: str, fill: str, *, row: int, column: int, value: str = "value"
) -> None:
    """One line for each group of heads; `value` is the column of the table, its bounds stand beside it."""
    low, high = ("low", "high") if value == "value" else (f"{value}_low", f"{value}_high")
    base = checked.row(task, "none")
    apart = max(checked.ks) / 90  # so that the bars of three groups stand side by side
    for shift, (group, (name, colour, symbol, dash)) in zip((-apart, 0.0, apart), LINES.items(), strict=True):
        cells = [base, *(checked.row(task, group, k, fill) for k in checked.ks)]
        height = [float(cell[value]) for cell in cells]
        figure.add_scatter(
            x=[k + shift for k in (0, *checked.ks)],
            y=height,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [float(cell[high]) - y for cell, y in zip(cells, height, strict=True)],
                "arrayminus": [y - float(cell[low]) for cell, y in zip(cells, height, strict=True)],
                "thickness": 1.2,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            name=name,
            legendgroup=group,
            showlegend=row == 1 and column == 1,
            customdata=[0, *checked.ks],
            hovertemplate=f"{name}, {fill}<br>%{{customdata}} pruned: %{{y:.3f}}<extra></extra>",
            row=row,
            col=column,
        )
