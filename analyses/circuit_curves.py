"""The figure of a circuit curve: faithfulness by size, beside random circuits of the same sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from probe.analyses.figure_style import BLUE, INK, MUTED, decimal, styled

if TYPE_CHECKING:
    from probe.edges.curves import CircuitCurve


def curve_figure(curve: CircuitCurve, *, name: str) -> go.Figure:
    """Faithfulness of the best edges by size, with bars of two standard errors, and of each set of random circuits.

    name: what was asked of which model, for the title. The horizontal axis is logarithmic; CPR and CMD are not.
    """
    figure = go.Figure()
    for draw, values in enumerate(curve.random_faithfulness):
        figure.add_trace(
            go.Scatter(
                x=curve.percents,
                y=values.tolist(),
                mode="lines",
                line={"color": MUTED, "width": 1.5},
                name=f"random, {len(curve.random)} draws",
                legendgroup="random",
                showlegend=draw == 0,
                hovertemplate="%{x} % of the edges, random: f = %{y:.2f}<extra></extra>",
            )
        )
    gap = float((curve.clean - curve.corrupted).double().mean())
    errors = curve.difference.double().std(1) / len(curve.clean) ** 0.5 / abs(gap)
    figure.add_trace(
        go.Scatter(
            x=curve.percents,
            y=curve.faithfulness.tolist(),
            error_y={"array": (2 * errors).nan_to_num().tolist(), "thickness": 1.2, "width": 3},
            mode="lines+markers",
            line={"color": BLUE, "width": 3},
            marker={"size": 8},
            name=curve.method,
            customdata=curve.sizes,
            hovertemplate="%{x} %: the best %{customdata:,} edges, f = %{y:.2f}<extra></extra>",
        )
    )
    for level, text in ((1.0, "the whole model"), (0.0, "everything corrupted")):
        figure.add_hline(
            y=level,
            line={"color": INK, "width": 1, "dash": "dot"},
            annotation={"text": text, "font": {"color": MUTED, "size": 12}},
            annotation_position="top left" if level else "bottom left",
        )
    kept = zip(curve.percents, curve.faithfulness.tolist(), strict=True)
    reached = [percent for percent, found in kept if found >= 0.9 and percent < 100]
    share = f"{reached[0]:g} % of the edges keep" if reached else "No circuit smaller than the model keeps"
    figure = styled(
        figure,
        title=f"{share} nine tenths of the answer: {name}",
        subtitle="the best edges kept, all others corrupted; bars are two standard errors; "
        f"CPR {decimal(curve.cpr, digits=3)}, CMD {decimal(curve.cmd, digits=3)}",
    )
    figure.update_xaxes(
        type="log",
        title="edges kept, % of all (logarithmic)",
        tickvals=list(curve.percents),
        ticktext=[f"{percent:g}" for percent in curve.percents],
    )
    figure.update_yaxes(title="faithfulness f")
    figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"})
    return figure
