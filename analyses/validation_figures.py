"""Figures of the causal check: what pruning does to retrieval, and what else it breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.analyses.figure_style import BLUE, INK, MUTED, SKY, VERMILION, styled

if TYPE_CHECKING:
    from probe.analyses.validation import Validation

LINES = {
    "top": ("highest-scoring heads", VERMILION, "circle", "solid"),
    "random": ("random heads", BLUE, "square", "solid"),
    "same layers": ("random heads of the same layers", SKY, "diamond", "dash"),
}
FILLS = {"zero": "output removed (zero)", "uniform": "even attention (uniform, the official mask)"}


def needle_curves(checked: Validation) -> go.Figure:
    """Needle accuracy against the number of heads pruned, one panel a fill, with random controls and intervals."""
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
    return _finished(
        figure,
        checked,
        title=f"Without its {fewest} retrieval heads {checked.manifest.name} finds {without:.0%} of the needles, "
        f"without {fewest} random ones {control:.0%}",
        subtitle=f"{int(base['samples'])} held-out needles, {base['value']:.0%} found unpruned; pruned while "
        f"{'the answer is written' if checked.phase == 'decode' else 'reading and writing'}; bars: 95% intervals",
    )


def specificity_curves(checked: Validation) -> go.Figure:
    """What else breaks: closed-book accuracy above, loss on prose below, one column a fill."""
    figure = _panels(checked, [FILLS[fill] for fill in checked.fills], rows=2)
    for column, fill in enumerate(checked.fills, start=1):
        _add_lines(figure, checked, "closed book", fill, row=1, column=column)
        _add_lines(figure, checked, "prose", fill, row=2, column=column)
    figure.update_yaxes(range=[-0.04, 1.06], tickformat=".0%", row=1)
    figure.update_yaxes(title_text="closed-book answers right", row=1, col=1)
    figure.update_yaxes(title_text="loss on prose, nats per token", row=2, col=1)
    figure.update_xaxes(tickvals=[0, *checked.ks])
    figure.update_xaxes(title_text="heads pruned", row=2)
    most = max(checked.ks)
    loss = ", ".join(f"{checked.row('prose', 'top', most, fill)['rise']:+.2f} nats ({fill})" for fill in checked.fills)
    return _finished(
        figure,
        checked,
        title=f"Pruning {most} retrieval heads changes the loss on prose by {loss}",
        subtitle="What the model does without copying; the loss with all positions pruned; bars: 95% intervals",
        height=700,
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


def _add_lines(figure: go.Figure, checked: Validation, task: str, fill: str, *, row: int, column: int) -> None:
    base = checked.row(task, "none")
    figure.add_hline(
        y=base["value"], line={"color": MUTED, "dash": "dot", "width": 1}, row=row, col=column  # type: ignore[arg-type]
    )  # fmt: skip
    for group, (name, colour, symbol, dash) in LINES.items():
        cells = [base, *(checked.row(task, group, k, fill) for k in checked.ks)]
        value = [float(cell["value"]) for cell in cells]
        figure.add_trace(
            go.Scatter(
                x=[0, *checked.ks],
                y=value,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [float(cell["high"]) - y for cell, y in zip(cells, value, strict=True)],
                    "arrayminus": [y - float(cell["low"]) for cell, y in zip(cells, value, strict=True)],
                    "thickness": 1.2,
                    "width": 4,
                },
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 9},
                name=name,
                legendgroup=group,
                showlegend=row == 1 and column == 1,
                hovertemplate=f"{name}, {fill}<br>%{{x}} pruned: %{{y:.3f}}<extra></extra>",
            ),
            row=row,
            col=column,
        )


def _finished(figure: go.Figure, checked: Validation, *, title: str, subtitle: str, height: int = 500) -> go.Figure:
    styled(figure, title=title, subtitle=subtitle, width=max(720, 140 + 440 * len(checked.fills)), height=height)
    figure.update_layout(
        margin={"t": 150},
        legend={"orientation": "h", "x": 0, "y": 1.09 + 30 / height, "yanchor": "bottom", "font": {"size": 13}},
    )
    figure.update_annotations(font={"size": 14, "color": INK})
    return figure
