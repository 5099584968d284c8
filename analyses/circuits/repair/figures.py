"""The plot of a repair: the share of right answers under each condition, beside chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from probe.analyses.circuits.repair.forcing import HEADS, NONE, REPAIR, RIGHT, TOKENS
from probe.figures.plot import Plot
from probe.figures.style import BLUE, MUTED, ORANGE

if TYPE_CHECKING:
    from probe.analyses.circuits.repair.result import Repair

LABELS = {
    NONE: "as it is", REPAIR: "onto the wrong answers", HEADS: "random heads,<br>onto the wrong answers",
    TOKENS: "onto random tokens", RIGHT: "onto the right answer",
}  # fmt: skip


def condition_figure(found: Repair) -> Plot:
    """Draw a row for each condition and a point for each draw, with Wilson intervals."""
    figure = go.Figure()
    for condition, label in LABELS.items():
        rows = found.conditions[found.conditions["condition"] == condition]
        colour = {NONE: MUTED, REPAIR: BLUE}.get(condition, ORANGE)
        figure.add_scatter(
            x=rows["best"], y=[label] * len(rows), mode="markers", showlegend=False,
            marker={"size": 12, "color": colour, "opacity": 0.8},
            error_x={
                "type": "data", "symmetric": False, "array": rows["best_high"] - rows["best"],
                "arrayminus": rows["best"] - rows["best_low"], "color": colour, "thickness": 1.5,
            },
            customdata=rows["heads"], hovertemplate="%{customdata} %{x:.1%}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=found.chance, line={"color": MUTED, "dash": "dot"})
    figure.update_xaxes(title="right answer beats the other choices, share of prompts", range=[0, 1], tickformat=".0%")
    figure.update_yaxes(categoryorder="array", categoryarray=list(LABELS.values())[::-1])
    names = " ".join(map(str, found.heads))
    return Plot(
        figure,
        headline=f"Forcing {names} onto the wrong answers changes the share of right answers from "
        f"{found.value(NONE):.0%} to {found.value(REPAIR):.0%}",
        reading=f"{found.target}. The intervention is an oracle: it knows which answers are wrong. The heads come from "
        f"{found.source}. The dotted line is chance; bars are 95% intervals.",
        width=640,
        height=230,
        lines=3 * len(LABELS),
    )
