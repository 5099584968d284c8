"""Figures of reuse: two circuits side by side, every head's two effects, and the overlaps beside their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.figure_style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, styled
from probe.analyses.reuse import AGAIN, CONTROL, FIRST, SECOND

if TYPE_CHECKING:
    from probe.analyses.reuse import Reuse

SIDES = {FIRST: (0.0, "middle left"), SECOND: (1.0, "middle right")}


def joined_circuits(found: Reuse) -> go.Figure:
    """The k largest effects of each task on the logits, by layer; a line joins a head that both have."""
    rows = found.effects[found.effects["stage"] == "logits"].set_index("name")
    shared = found.shared()
    figure = go.Figure()
    heights: dict[str, dict[str, float]] = {}
    for run, (x, text) in SIDES.items():
        top = rows.loc[rows[run].abs().sort_values(ascending=False, kind="stable").index[: found.k]]
        heights[run] = _spread({str(name): float(layer) for name, layer in top["layer"].items()})
        names = list(heights[run])
        figure.add_scatter(
            x=[x] * len(names),
            y=[heights[run][name] for name in names],
            mode="markers+text",
            text=[f"{name} {rows.loc[name, run]:+.0f} %" for name in names],
            textposition=text,
            textfont={"size": 12, "color": INK},
            marker={
                "size": [10 + 4 * abs(rows.loc[name, run]) ** 0.5 for name in names],
                "color": [BLUE if rows.loc[name, run] > 0 else VERMILION for name in names],
            },
            hovertext=[f"{name}: {rows.loc[name, f'{run}_role']}" for name in names],
            hoverinfo="text",
            showlegend=False,
        )
    for name in shared:
        figure.add_scatter(
            x=[0, 1], y=[heights[FIRST][name], heights[SECOND][name]], mode="lines",
            line={"color": GREEN, "width": 2}, opacity=0.5, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(
        tickvals=[0, 1], ticktext=[found.tasks[FIRST], found.tasks[SECOND]], range=[-0.45, 1.45], showgrid=False
    )
    figure.update_yaxes(title="layer (heads of a layer spread out)")
    return styled(
        figure,
        title=f"{found.tasks[FIRST]} and {found.tasks[SECOND]} share {len(shared)} of their {found.k} heads",
        subtitle=f"largest effects on the logits; <span style='color:{BLUE}'>supports the answer</span>, "
        f"<span style='color:{VERMILION}'>works against it</span>; joined: in both",
        width=820,
        height=620,
    )


def scatter(found: Reuse) -> go.Figure:
    """Every head's effect on the logits in both tasks."""
    rows = found.effects[found.effects["stage"] == "logits"]
    shared = set(found.shared())
    largest = rows[[FIRST, SECOND]].abs().max(axis=1) >= 5
    figure = go.Figure(
        go.Scatter(
            x=rows[FIRST],
            y=rows[SECOND],
            mode="markers+text",
            text=[name if big else "" for name, big in zip(rows["name"], largest, strict=True)],
            textposition="top center",
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


def _spread(heights: dict[str, float]) -> dict[str, float]:
    """Heights with those of one layer set apart, so that labels can be read."""
    found: dict[str, float] = {}
    last = float("-inf")
    for name, height in sorted(heights.items(), key=lambda pair: (pair[1], pair[0])):
        last = max(height, last + 0.75)
        found[name] = last
    return found
