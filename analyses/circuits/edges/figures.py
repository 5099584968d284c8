"""Figures of edges: faithfulness by size beside random circuits, and the best edges' scores beside exact effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from probe.analyses.circuits.quotient import divides
from probe.figures.plot import Plot
from probe.figures.style import BLUE, GRID, INK, MUTED
from probe.frame.tables import decimal

if TYPE_CHECKING:
    from probe.analyses.circuits.edges.result import Edges
    from probe.edges.curves import CircuitCurve


def curve_figure(curve: CircuitCurve, *, name: str) -> Plot:
    """Draw the faithfulness of the best edges by size, with bars of two standard errors, and of the random circuits.

    name: the task and the model, for the headline. The horizontal axis is logarithmic; CPR and CMD are not.
    """
    figure = go.Figure()
    known = divides(curve.clean - curve.corrupted)
    for draw, values in enumerate(curve.random_faithfulness if known else ()):
        figure.add_scatter(
            x=curve.percents,
            y=values.tolist(),
            mode="lines",
            line={"color": MUTED, "width": 1.5},
            name=f"random, {len(curve.random)} draws",
            legendgroup="random",
            showlegend=draw == 0,
            hovertemplate="%{x} % of the edges, random: f = %{y:.2f}<extra></extra>",
        )
    gap = float((curve.clean - curve.corrupted).double().mean())
    errors = curve.difference.double().std(1) / len(curve.clean) ** 0.5 / abs(gap)
    figure.add_scatter(
        x=curve.percents,
        y=curve.faithfulness.tolist() if known else [],
        error_y={"array": (2 * errors).nan_to_num().tolist(), "thickness": 1.2, "width": 3},
        mode="lines+markers",
        line={"color": BLUE, "width": 3},
        marker={"size": 8},
        name=curve.method,
        customdata=curve.sizes,
        hovertemplate="%{x} %: the best %{customdata:,} edges, f = %{y:.2f}<extra></extra>",
    )
    for level, text in ((1.0, "the whole model"), (0.0, "everything corrupted")):
        figure.add_hline(
            y=level,
            line={"color": INK, "width": 1, "dash": "dot"},
            annotation={"text": text, "font": {"color": MUTED, "size": 12}},
            annotation_position="top left" if level else "bottom left",
        )
    reached = curve.smallest()
    share = "No circuit smaller than the model keeps" if reached is None else f"{reached:g} % of the edges keep"
    headline = f"{share} nine tenths of the answer" if known else "The gap is within its error: no faithfulness"
    figure.update_xaxes(
        type="log",
        title="edges kept, % of all (logarithmic)",
        tickvals=list(curve.percents),
        ticktext=[f"{percent:g}" for percent in curve.percents],
    )
    figure.update_yaxes(title="faithfulness f")
    return Plot(
        figure,
        headline=f"{headline}: {name}",
        reading=f"The best edges by {curve.by} are kept and all others corrupted. Bars are two standard errors. "
        + (f"CPR {decimal(curve.cpr, digits=3)}, CMD {decimal(curve.cmd, digits=3)}." if known else ""),
    )


def exact_figure(found: Edges, *, name: str) -> Plot:
    """Draw the best edges' scores against the effects of patching each, in percent of the gap if that is certain."""
    unit, form, scale = ("% of the gap", "+.1f", 1.0) if found.divides else ("logits", "+.3f", found.scores.gap / 100)
    table = found.exact.assign(**scale * found.exact[["percent", "exact", "exact_error"]])
    names = [f"{sender} to {receiver}" for sender, receiver in zip(table["sender"], table["receiver"], strict=True)]
    ends = [min(table["exact"].min(), table["percent"].min()), max(table["exact"].max(), table["percent"].max())]
    figure = go.Figure(
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"}, hoverinfo="skip")
    )
    named = _apart(table["percent"].tolist(), 0.06 * (ends[1] - ends[0]))
    figure.add_scatter(
        x=table["exact"],
        y=table["percent"],
        error_x={"array": (2 * table["exact_error"].abs()).fillna(0), "thickness": 1, "width": 2, "color": GRID},
        mode="markers+text",
        text=[each if place in named else "" for place, each in enumerate(names)],
        textposition=["middle left" if x > sum(ends) / 2 else "middle right" for x in table["exact"]],
        textfont={"size": 11},
        customdata=names,
        marker={"size": 9, "color": BLUE},
        hovertemplate=f"%{{customdata}}<br>exact %{{x:{form}}}, score %{{y:{form}}} {unit}<extra></extra>",
    )
    figure.update_xaxes(title=f"exact effect of the edge alone, {unit}")
    figure.update_yaxes(title=f"score, {unit}")
    figure.update_layout(showlegend=False)
    return Plot(
        figure,
        headline=f"Scores and exact effects of {len(table)} edges correlate at {decimal(found.agreement)}: {name}",
        reading=f"Scores by {found.method}. On the dotted line both agree. Bars are two standard errors.",
    )


def _apart(heights: list[float], least: float) -> set[int]:
    """Return places of the points that can be named without their names lying on one another, the largest first."""
    found: set[int] = set()
    for place in sorted(range(len(heights)), key=lambda place: -abs(heights[place])):
        if all(abs(heights[place] - heights[other]) >= least for other in found):
            found.add(place)
    return found
