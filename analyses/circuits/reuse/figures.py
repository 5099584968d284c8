"""Figures of reuse: two circuits side by side, every head's two effects, and the overlaps beside their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.circuits.reuse.settings import AGAIN, CONTROL, FIRST, SECOND
from probe.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, styled

if TYPE_CHECKING:
    import pandas as pd

    from probe.analyses.circuits.reuse.result import Reuse

SIDES = {FIRST: (0.0, "middle left"), SECOND: (1.0, "middle right")}


def joined_circuits(found: Reuse) -> go.Figure:
    """The k largest effects of each task on the logits, one line a head, by layer; joined where both tasks have it."""
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
            text=[f"{name} {value:+.0f} %" for name, value in top[run].items()],
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
        tickvals=[0, 1], ticktext=[found.tasks[FIRST], found.tasks[SECOND]], range=[-0.45, 1.45], showgrid=False,
        side="top",
    )  # fmt: skip
    figure.update_yaxes(title="earlier layers below, later above", showticklabels=False, showgrid=False, ticks="")
    return styled(
        figure,
        title=f"{found.tasks[FIRST]} and {found.tasks[SECOND]} share {len(shared)} of their {found.k} heads",
        subtitle=f"largest effects on the logits; <span style='color:{BLUE}'>supports the answer</span>, "
        f"<span style='color:{VERMILION}'>works against it</span>; joined: in both",
        width=820,
        height=180 + 40 * len(heads),
    )


def _place(rows: pd.DataFrame, name: str) -> tuple[int, int]:
    return int(rows.loc[name, "layer"]), int(rows.loc[name, "head"])  # pyright: ignore[reportArgumentType]


def scatter(found: Reuse) -> go.Figure:
    """Every head's effect on the logits in both tasks."""
    rows = found.effects[found.effects["stage"] == "logits"]
    shared = set(found.shared())
    largest = rows[[FIRST, SECOND]].abs().max(axis=1) >= 5
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
            hovertemplate="%{customdata}: %{x:.1f} %, %{y:.1f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title=f"effect in {found.tasks[FIRST]}, % of gap")
    figure.update_yaxes(title=f"effect in {found.tasks[SECOND]}, % of gap")
    weighted = found.overlaps.query("stage == 'logits' and run == @SECOND")["weighted"].iloc[0]
    return styled(
        figure,
        title=f"Every head in both tasks: weighted overlap {weighted:.2f}",
        subtitle=f"green: among the {found.k} largest effects of both",
        width=700,
        height=600,
    )


def overlap_bars(found: Reuse) -> go.Figure:
    """Shared heads and weighted overlap of each pair, by stage, with chance."""
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
    figure = styled(
        figure,
        title=f"What {found.tasks[FIRST]} shares with {found.tasks[SECOND]}, with itself, with {found.tasks[CONTROL]}",
        subtitle=f"dotted: {chance:.1f} by chance",
        width=900,
        height=440,
    )
    figure.update_layout(legend={"orientation": "h", "y": -0.28}, margin={"b": 110, "t": 110})
    return figure
