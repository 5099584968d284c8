"""Figures of reuse: two circuits side by side, every head's two effects, and the overlaps beside their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.circuits.reuse.settings import AGAIN, CONTROL, FIRST, SECOND
from probe.figures.plot import Plot
from probe.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, coloured

if TYPE_CHECKING:
    import pandas as pd

    from probe.analyses.circuits.reuse.result import Reuse

SIDES = {FIRST: (0.0, "middle left"), SECOND: (1.0, "middle right")}


def joined_circuits(found: Reuse) -> Plot:
    """Draw the k largest effects of each task on the logits by layer; a line joins a head that both tasks have."""
    rows = found.effects[found.effects["stage"] == "logits"].set_index("name")
    tops = {
        run: rows.loc[rows[run].abs().sort_values(ascending=False, kind="stable").index[: found.k]] for run in SIDES
    }
    heads = rows.loc[sorted(set(tops[FIRST].index) | set(tops[SECOND].index), key=lambda name: _place(rows, name))]
    height = {str(name): place for place, name in enumerate(heads.index)}
    shared = found.shared()
    figure = go.Figure()
    for name in shared:
        figure.add_scatter(
            x=[0, 1], y=[height[name]] * 2, mode="lines", line={"color": GREEN, "width": 2}, opacity=0.5,
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    for run, (x, text) in SIDES.items():
        top = tops[run]
        figure.add_scatter(
            x=[x] * len(top),
            y=[height[str(name)] for name in top.index],
            mode="markers+text",
            text=[f"{name} {value:+.0f} %" if found.runs[run].divides else name for name, value in top[run].items()],
            textposition=text,
            textfont={"size": 12, "color": INK},
            marker={
                "size": [10 + 4 * abs(value) ** 0.5 for value in top[run]],
                "color": [BLUE if value > 0 else VERMILION for value in top[run]],
                "opacity": 1,
            },
            hovertext=[f"{name}: {role}" for name, role in top[f"{run}_role"].items()],
            hoverinfo="text",
            showlegend=False,
        )
    figure.update_xaxes(
        tickvals=[0, 1], ticktext=[found.tasks[FIRST], found.tasks[SECOND]], range=[-0.85, 1.85], showgrid=False,
        side="top",
    )  # fmt: skip
    figure.update_yaxes(title="earlier layers below, later above", showticklabels=False, showgrid=False, ticks="")
    return Plot(
        figure,
        headline=f"{found.tasks[FIRST]} and {found.tasks[SECOND]} share {len(shared)} of their {found.k} heads",
        reading=f"The largest effects on the logits: the head {coloured('supports the answer', BLUE)} or "
        f"{coloured('works against it', VERMILION)}. A line joins a head that both tasks have.",
        width=700,
        height=40 * len(heads),
        lines=round(1.3 * len(heads)),
    )


def _place(rows: pd.DataFrame, name: str) -> tuple[int, int]:
    return int(rows.loc[name, "layer"]), int(rows.loc[name, "head"])  # pyright: ignore[reportArgumentType]


def scatter(found: Reuse) -> Plot:
    """Draw the effect of every head on the logits in one task against that in the other."""
    rows = found.effects[found.effects["stage"] == "logits"]
    shared = set(found.shared())
    largest = rows[[FIRST, SECOND]].abs().max(axis=1) >= 5
    units = {}
    for run in SIDES:  # a gap within its error divides nothing
        divides, gap = found.runs[run].divides, found.runs[run].gap
        units[run] = "% of gap" if divides else "logits"
        rows = rows.assign(**{run: rows[run] * (1 if divides else gap / 100)})
    rank = rows[FIRST].rank(method="first").astype(int)  # neighbours' names above and below their points in turn
    figure = go.Figure(
        go.Scatter(
            x=rows[FIRST],
            y=rows[SECOND],
            mode="markers+text",
            text=[name if big else "" for name, big in zip(rows["name"], largest, strict=True)],
            textposition=["top center" if each % 2 else "bottom center" for each in rank],
            textfont={"size": 11},
            marker={"size": 8, "color": [GREEN if name in shared else MUTED for name in rows["name"]], "opacity": 0.8},
            customdata=rows["name"],
            hovertemplate=f"%{{customdata}}: %{{x:.2f}} {units[FIRST]}, %{{y:.2f}} {units[SECOND]}<extra></extra>",
        )
    )
    figure.update_xaxes(title=f"effect in {found.tasks[FIRST]}, {units[FIRST]}")
    figure.update_yaxes(title=f"effect in {found.tasks[SECOND]}, {units[SECOND]}")
    weighted = found.overlaps.query("stage == 'logits' and run == @SECOND")["weighted"].iloc[0]
    return Plot(
        figure,
        headline=f"The effects of all heads in both tasks have a weighted overlap of {weighted:.2f}",
        reading=f"{coloured('Green heads', GREEN)} are among the {found.k} largest effects of both tasks.",
        width=600,
        height=480,
        lines=16,
    )


def overlap_bars(found: Reuse) -> Plot:
    """Draw the shared heads and the weighted overlap of each pair of tasks, by stage, with chance."""
    stages = list(found.overlaps["stage"].unique())
    figure = make_subplots(cols=2, subplot_titles=[f"shared of the {found.k} largest", "weighted overlap"])
    looks = {SECOND: BLUE, AGAIN: GREEN, CONTROL: ORANGE}
    names = {
        SECOND: found.tasks[SECOND],
        AGAIN: f"{found.tasks[FIRST]}, other prompts",
        CONTROL: found.tasks[CONTROL],
    }
    for run, colour in looks.items():
        rows = found.overlaps[found.overlaps["run"] == run].set_index("stage").loc[stages]
        for column, measure in enumerate(("shared", "weighted"), start=1):
            figure.add_bar(
                x=stages, y=rows[measure], name=names[run], marker_color=colour, legendgroup=run,
                showlegend=column == 1, row=1, col=column, text=[f"{value:.3g}" for value in rows[measure]],
            )  # fmt: skip
    chance = float(found.overlaps["chance"].iloc[0])
    figure.add_hline(y=chance, line={"color": INK, "dash": "dot"}, row=1, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(title="stage")
    shared = found.overlaps[found.overlaps["stage"] == stages[0]].set_index("run")["shared"]
    return Plot(
        figure,
        headline=f"Of the {found.k} largest effects on the {stages[0]}, {found.tasks[FIRST]} shares "
        f"{shared[SECOND]:.0f} with {found.tasks[SECOND]}, {shared[AGAIN]:.0f} with itself on other prompts, and "
        f"{shared[CONTROL]:.0f} with {found.tasks[CONTROL]}",
        reading=f"The dotted line is what chance gives: {chance:.1f} heads.",
        width=800,
        height=280,
    )
