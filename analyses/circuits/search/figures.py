"""Figures of a circuit: its heads by stage and layer, the effects of all heads, and the knock-outs."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from probe.figures.plot import Plot
from probe.figures.style import BLUE, GRID, MUTED, ORANGE, SIGNED_SCALE, VERMILION, coloured
from probe.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from probe.analyses.circuits.search.result import Circuit

PATHS = {
    "logits": "to the logits",
    "queries": "to the movers'<br>queries",
    "values": "to those<br>heads' values",
    "keys": "to those<br>heads' keys",
}


def circuit_figure(found: Circuit) -> Plot:
    """Draw a column for each stage, the logits at the right; a head's height is its layer, its size its effect."""
    stages = [stage for stage in reversed(PATHS) if stage in found.receivers]
    figure = go.Figure()
    kept = {stage: found.stage(stage).query("kept") for stage in stages}
    # a stage is as wide as its fullest layer, in heads with their names
    widths = [max(2, int(rows["layer"].value_counts().max()) if len(rows) else 0) for rows in kept.values()]
    lefts = [sum(widths[:column]) for column in range(len(stages))]
    places = {stage: _places(kept[stage], left) for stage, left in zip(stages, lefts, strict=True)}
    for here, there in pairwise(stages):
        received = {name.replace("Q", "H") for name in found.receivers[here]}
        rows = kept[there].query("percent > 0")
        ends = [places[there][name] for name in rows["name"] if here != "queries" or name in received]
        for x, y in places[here].values():
            for end_x, end_y in ends:
                figure.add_scatter(
                    x=[x, end_x], y=[y, end_y], mode="lines", line={"color": GRID, "width": 1}, hoverinfo="skip",
                    showlegend=False,
                )  # fmt: skip
    numbers, unit, form = ["percent", "percent_error"], "%", ".1f"
    if not found.divides:
        numbers, unit, form = ["raw", "standard_error"], "logits", ".3f"
    for stage in stages:
        rows = kept[stage]
        figure.add_scatter(
            x=[places[stage][name][0] for name in rows["name"]],
            y=[places[stage][name][1] for name in rows["name"]],
            mode="markers+text",
            text=rows["name"],
            textposition="middle right",
            textfont={"size": 11},
            marker={
                "size": [10 + 4 * abs(percent) ** 0.5 for percent in rows["percent"]],
                "color": [BLUE if percent > 0 else VERMILION for percent in rows["percent"]],
                "opacity": 0.9,
            },
            customdata=rows[[*numbers, "role"]],
            hovertemplate="%{text}, %{customdata[2]}<br>"
            f"%{{customdata[0]:+{form}}} ± %{{customdata[1]:{form}}} {unit}<extra></extra>",
            showlegend=False,
        )
    figure.update_xaxes(
        tickvals=[left + (width - 1) / 2 for left, width in zip(lefts, widths, strict=True)],
        ticktext=[PATHS[stage] for stage in stages], range=[-0.5, sum(widths)], showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(title="layer")
    return Plot(
        figure,
        headline=f"The circuit of {found.task} in {found.manifest.name} has {len(found.heads())} heads",
        reading=f"Size is the effect on the logit difference: the head {coloured('supports the answer', BLUE)} or "
        f"{coloured('works against it', VERMILION)}. Lines are the paths that were patched.",
        width=84 * sum(widths),
        height=420,
        lines=20,
        least_width=64 * sum(widths),
    )


def effect_map(found: Circuit) -> Plot:
    """Draw the effect of every head on the logits: in percent of the gap, or in logits where that is uncertain."""
    column, unit, form = ("percent", "%", "+.1f") if found.divides else ("raw", "logits", "+.3f")
    effects = found.percent("logits", column)
    most = float(effects.abs().max())
    layers, heads = effects.shape
    figure = go.Figure(
        go.Heatmap(
            z=effects.T.tolist(),
            zmin=-most,
            zmax=most,
            colorscale=SIGNED_SCALE,
            xgap=1,
            ygap=1,
            colorbar={"title": "% of gap" if found.divides else "logits"},
            text=[[str(Head(layer, head)) for layer in range(layers)] for head in range(heads)],
            hovertemplate=f"%{{text}}: %{{z:{form}}} {unit}<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="head", autorange="reversed")
    first = found.stage("logits").iloc[0]
    moved = f"moves {abs(first['percent']):.0f} % of" if found.divides else f"changes by {first['raw']:+.2f} logits"
    return Plot(
        figure,
        headline=f"{first['name']} {moved} the logit difference of {found.task}",
        reading=f"{found.manifest.name}: each head patched along its path to the logits, over "
        f"{found.behaviour['prompts']} prompts.",
        width=28 * layers,
        height=28 * heads,
        lines=min(heads, 16) + 2,
        keep=True,
    )


def knockout_figure(found: Circuit) -> Plot:
    """Draw the logit difference with everything knocked out but the circuit, random circuits, or nothing."""
    rows = found.tests[found.tests["test"] == "faithfulness"]
    figure = go.Figure()
    colours = {"whole model": MUTED, "nothing": MUTED, "circuit": BLUE, "random": ORANGE}
    for what, colour in colours.items():
        own = rows[rows["what"] == what]
        figure.add_scatter(
            x=own["ld"], y=own["what"], mode="markers", marker={"size": 12, "color": colour, "opacity": 0.85},
            error_x={"type": "data", "array": 1.96 * own["ld_error"], "color": colour, "thickness": 1.5},
            hovertemplate="%{y}: LD %{x:.2f}<extra></extra>", showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(title="logit difference, logits (mean over prompts, 95 % interval)")
    figure.update_yaxes(categoryorder="array", categoryarray=list(colours)[::-1])
    if found.faithfulness("circuit")[0].known:
        circuit, others = (f"{found.value('faithfulness', what):.0%}" for what in ("circuit", "random"))
        kept = f"{circuit} of the logit difference, random ones {others}"
    else:
        mean = rows.groupby("what")["ld"].mean()
        kept = f"a logit difference of {mean['circuit']:.2f}, random ones of {mean['random']:.2f}"
    fill = found.manifest.options["fill"]
    out = "write what they write in the corrupted prompt" if fill == "corrupted" else f"are knocked out ({fill})"
    return Plot(
        figure,
        headline=f"The circuit keeps {kept}",
        reading=f"{found.task}: all heads but {len(found.heads())} {out}.",
        width=720,
        height=200,
        lines=2 * len(colours),
    )


def _places(rows: pd.DataFrame, left: float) -> dict[str, tuple[float, float]]:
    """Return where each head stands: heads of one layer side by side from `left` on, largest effect first."""
    found: dict[str, tuple[float, float]] = {}
    taken: dict[int, int] = {}
    for name, layer in zip(rows["name"], rows["layer"], strict=True):
        found[name] = (left + taken.setdefault(layer, 0), float(layer))
        taken[layer] += 1
    return found
