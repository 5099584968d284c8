"""Figures of ACT: what each condition does, and whether the gradient filter agrees with the exact one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.act.conditions import CALIBRATION, ORDER
from probe.figures.plot import Plot
from probe.figures.style import BLUE, GREEN, MUTED, ORANGE
from probe.frame.tables import decimal

if TYPE_CHECKING:
    from probe.analyses.act.result import Calibration

MEASURES = {"nll": "loss, nats (less is better)", "accuracy": "accuracy", "auc": "ROC AUC"}


def condition_bars(found: Calibration) -> Plot:
    """Draw a row of points for each condition, a column for each measure, a colour for each split."""
    figure = make_subplots(cols=len(MEASURES), shared_yaxes=True, subplot_titles=list(MEASURES.values()))
    splits = list(found.conditions["split"].unique())
    for split, colour in zip(splits, (MUTED, BLUE, ORANGE, GREEN) * len(splits), strict=False):
        rows = found.conditions[found.conditions["split"] == split]
        for column, measure in enumerate(MEASURES, start=1):
            figure.add_scatter(
                x=rows[measure],
                y=rows["condition"],
                mode="markers",
                marker={"color": colour, "size": 10, "opacity": 0.8},
                name=f"{split} ({int(rows['n'].max())})",
                legendgroup=split,
                showlegend=column == 1,
                hovertemplate="%{y}: %{x:.3f}",
                row=1,
                col=column,
            )
    figure.update_yaxes(categoryorder="array", categoryarray=ORDER[::-1])
    tested = next(split for split in splits if split != CALIBRATION)
    share = found.explained(tested)
    headline = f"Calibrating sinks in {found.k} heads does not lower the loss beyond its error ({tested} split)"
    if share is not None:
        headline = f"A label bias alone explains {share:.0%} of what calibrating {found.k} heads gains ({tested} split)"
    return Plot(
        figure,
        headline=headline,
        reading=f"{found.manifest.name}, variant {found.variant}. Each random draw of heads is a point of its own.",
        width=780,
        height=260,
        lines=2 * len(ORDER),
    )


def filter_scatter(found: Calibration) -> Plot:
    """Draw the effect of each head when it is calibrated alone against the gradient that predicts it."""
    swept = found.heads.dropna(subset=["effect"])
    figure = go.Figure(
        go.Scatter(
            x=swept["gradient"],
            y=swept["effect"],
            mode="markers",
            text=swept["name"],
            marker={"color": BLUE, "size": 8, "opacity": 0.75},
            hovertemplate="%{text}: gradient %{x:.4f}, alone %{y:.4f}",
        )
    )
    ends = [float(min(swept["gradient"].min(), 0)), float(max(swept["gradient"].max(), 0))]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": MUTED, "dash": "dot"}, hoverinfo="skip")
    agreement = found.agreement()
    figure.update_xaxes(title="d loss / d gate from one backward pass, nats")
    figure.update_yaxes(title="change of loss when calibrated alone, nats")
    figure.update_layout(showlegend=False)
    return Plot(
        figure,
        headline=f"The gradient and runs of {agreement['heads']:.0f} heads alone correlate at "
        f"{decimal(agreement['spearman'])} (Spearman)",
        reading=f"Pearson {decimal(agreement['pearson'])}. On the dotted line both are equal.",
        width=540,
        height=400,
    )
