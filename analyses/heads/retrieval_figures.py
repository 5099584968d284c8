"""Plots of retrieval heads: their places, their number, where the model retrieves needles, and what they copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import torch

from probe.figures.heads import scatter_figure
from probe.figures.plot import Plot
from probe.figures.style import BLUE, INK, MUTED, PALE, PAPER, SCORE_SCALE, SHARE_SCALE, VERMILION
from probe.frame.tables import decimal
from probe.heads import Head

if TYPE_CHECKING:
    from probe.analyses.heads.retrieval import RetrievalHeads

LABELLED = 5


def head_map(found: RetrievalHeads) -> Plot:
    """Draw layers across, heads down, the score as colour; cells at the threshold and above carry their number."""
    layers, heads = found.score.shape
    score = found.score.numpy()
    named = found.retrieval_heads()
    best = found.ranked()[0]
    figure = go.Figure(
        go.Heatmap(
            z=score.T,
            x=list(range(layers)),
            y=list(range(heads)),
            colorscale=SCORE_SCALE,
            zmin=0,
            zmax=max(1.0, float(score.max())),
            xgap=1,
            ygap=1,
            customdata=[[_described(found, Head(layer, head)) for layer in range(layers)] for head in range(heads)],
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={"title": {"text": "score"}},
        )
    )
    if layers <= 48:
        for head in named:
            figure.add_annotation(
                x=head.layer,
                y=head.head,
                text=decimal(float(found.score[head])),
                showarrow=False,
                font={"size": 10, "color": PAPER if found.score[head] > 0.45 else INK},
            )
    figure.update_xaxes(title="layer", dtick=2 if layers > 16 else 1, showgrid=False)
    figure.update_yaxes(title="head", dtick=1 if heads <= 16 else 4, autorange="reversed", showgrid=False)
    return Plot(
        figure,
        headline=f"{len(named)} of {found.n_heads} heads ({len(named) / found.n_heads:.1%}) retrieve; "
        f"{best} copies {found.score[best]:.0%} of the answers",
        reading=f"Retrieval score of every head of {found.manifest.name}: the mean over {len(found.per_sample)} "
        "retrieved needles. Cells from 0.1 on carry their number.",
        width=max(480, min(1240, 28 * layers)),
        height=max(200, min(820, 28 * heads)),
        lines=2 + (heads if heads <= 16 else heads // 4),
        keep=True,
    )


def score_curve(found: RetrievalHeads) -> Plot:
    """Draw the scores in falling order with their intervals, and the line at 0.1."""
    ranked = found.ranked()
    score, low, high = found.to_df()[["score", "low", "high"]].to_numpy().T
    rank = np.arange(1, len(ranked) + 1)
    text = [_described(found, head) for head in ranked]
    above = score >= 0.1
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([rank, rank[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor="rgba(0,114,178,0.15)",
        line={"width": 0},
        hoverinfo="skip",
        name="95% interval",
    )
    figure.add_scatter(
        x=rank, y=score, mode="lines", line={"color": MUTED, "width": 1}, hoverinfo="skip", showlegend=False
    )
    for mask, colour, name in ((above, BLUE, "score 0.1 or more"), (~above, PALE, "below 0.1")):
        figure.add_scatter(
            x=rank[mask],
            y=score[mask],
            mode="markers",
            marker={"color": colour, "size": 7},
            text=[line for line, keep in zip(text, mask, strict=True) if keep],
            hovertemplate="rank %{x}: %{text}<extra></extra>",
            name=name,
        )
    figure.add_hline(y=0.1, line={"color": VERMILION, "dash": "dash", "width": 1.5})
    for index in range(min(LABELLED, len(ranked))):
        figure.add_annotation(
            x=np.log10(rank[index]), y=score[index], text=str(ranked[index]), font={"size": 12, "color": INK},
            ax=16, ay=-20 - 22 * (index % 2), arrowhead=0, arrowwidth=1, arrowcolor=MUTED,
        )  # fmt: skip
    zero = int((score == 0).sum())
    ticks = [tick for power in range(6) for tick in (10**power, 2 * 10**power, 5 * 10**power) if tick <= len(ranked)]
    figure.update_xaxes(title="heads, best first (logarithmic scale)", type="log", tickvals=ticks, ticktext=ticks)
    figure.update_yaxes(title="retrieval score", rangemode="tozero")
    return Plot(
        figure,
        headline=f"{int(above.sum())} heads score 0.1 or more, and {zero / len(score):.0%} never copy a token",
        reading=f"{found.manifest.name}, {len(ranked)} heads. The dashed line is the paper's threshold of 0.1.",
        height=340,
    )


def accuracy_map(found: RetrievalHeads) -> Plot:
    """Draw the share of needles retrieved at each length and depth."""
    samples = found.samples
    depths, lengths = sorted(samples["depth"].unique()), sorted(samples["wanted_length"].unique())
    cells = [
        [
            samples.loc[(samples["depth"] == depth) & (samples["wanted_length"] == length), "success"]
            for length in lengths
        ]
        for depth in depths
    ]
    share = [[float(cell.mean()) for cell in row] for row in cells]  # NaN, drawn blank, where nothing was asked
    written = [[f"{int(cell.sum())}/{len(cell)}" if len(cell) else "" for cell in row] for row in cells]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=[f"{length:,}" for length in lengths],
            y=[f"{depth:g}" for depth in depths],
            text=written,
            texttemplate="%{text}",
            textfont={"size": 14},
            colorscale=SHARE_SCALE,
            zmin=0,
            zmax=1,
            xgap=2,
            ygap=2,
            hovertemplate="%{x} tokens, depth %{y}%: %{text} retrieved<extra></extra>",
            colorbar={"title": {"text": "share"}, "tickformat": ".0%"},
        )
    )
    total = found.accuracy()
    figure.update_xaxes(title="context length, tokens", type="category", showgrid=False)
    figure.update_yaxes(title="depth of the needle, %", type="category", autorange="reversed", showgrid=False)
    return Plot(
        figure,
        headline=f"{found.manifest.name} retrieves {total['retrieved']} of {total['asked']} needles",
        reading=f"95% interval of the accuracy: {total['low']:.0%} to {total['high']:.0%}.",
        width=max(420, min(1240, 80 * len(lengths))),
        height=max(220, min(760, 44 * len(depths))),
        lines=2 * len(depths),
        keep=True,
    )


def family_scatter(found: RetrievalHeads) -> Plot:
    """Draw the score of each head on one family of needles against its score on the other."""
    (first, x), (second, y) = found.by_family().items()
    r = float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])
    apart = sorted(found.ranked(), key=lambda head: -abs(float(x[head] - y[head])))
    return scatter_figure(
        x,
        y,
        x_name=f"score on {first}",
        y_name=f"score on {second}",
        headline=f"Heads that copy {first} mostly copy {second}, r = {decimal(r)}" if r > 0.5 else
        f"Heads that copy {first} are not those that copy {second}, r = {decimal(r)}",
        reading="In colour: the five best heads, and the three furthest from the diagonal, which copy one kind only.",
        marked=list(dict.fromkeys([*found.top(LABELLED), *apart[:3]])),
    )  # fmt: skip


def _described(found: RetrievalHeads, head: Head) -> str:
    """Return the line that the pointer shows for a head."""
    score, low, high = (float(each[head]) for each in (found.score, found.low, found.high))
    active = int((found.per_sample[:, head.layer, head.head] > 0).sum())
    group = head.head // (found.score.shape[1] // found.n_kv_heads)
    return (
        f"<b>{head}</b> score {decimal(score)} [{decimal(low)}, {decimal(high)}]<br>"
        f"active in {active} of {len(found.per_sample)} needles, KV group {group}"
    )
