"""Plots of time and memory of the cases against the length of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from probe.figures.plot import Plot
from probe.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from probe.benchmarks.record import Benchmark

METHODS = {
    "sdpa": INK, "plain": INK, "products": MUTED, "dense": VERMILION, "flex": PURPLE, "stats": BLUE, "act": GREEN,
    "eager": VERMILION, "bridge": ORANGE, "nnsight": PURPLE,
}  # fmt: skip
IMPLEMENTATIONS = (BLUE, GREEN, SKY, ORANGE)
DASHES = {"rows": "solid", "columns": "dash", "sets": "dot"}


def comparison(found: Benchmark, suite: str) -> Plot:
    """Draw time as a multiple of plain attention, and memory beyond the inputs, over the number of tokens.

    Both axes are logarithmic. A case that ran out of memory, or took too long, is a cross at the top.
    """
    from plotly.subplots import make_subplots

    rows = found.suite(suite)
    lengths = sorted(rows["length"].unique())
    kernels = suite == "kernels"
    figure = make_subplots(
        cols=2,
        subplot_titles=("time, multiples of " + ("sdpa alone" if kernels else "the plain forward"), "peak memory" + (
            " beyond the inputs" if kernels else " of the process")),
        horizontal_spacing=0.09,
    )  # fmt: skip
    memory = "growth" if kernels else "peak"
    ours = _ours(rows)
    for name, case in rows.groupby("name", sort=False):
        own = look(case.to_dict(orient="records")[0], ours)
        if not case["seconds"].notna().any() and not (case["status"] == "out of memory").any():
            continue
        for col, values in ((1, case["ratio"]), (2, case[memory])):
            figure.add_scatter(
                row=1, col=col, x=case["length"], y=values.where(values > 0), name=name, legendgroup=name,
                showlegend=col == 1, mode="lines+markers", line=own | {"width": 2},
                marker={"size": 7}, hovertemplate="%{y:.3s} at %{x} tokens<extra>" + str(name) + "</extra>",
            )  # fmt: skip
    crosses = _mark_failures(figure, rows, memory)
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[f"{n:,}" for n in lengths], title="tokens")
    for col, values, words in ((1, rows["ratio"], "{:g}x".format), (2, rows[memory], size)):
        ticks = _ticks(values)
        figure.update_yaxes(type="log", row=1, col=col, tickvals=ticks, ticktext=[words(tick) for tick in ticks])
    return Plot(figure, headline=_headline(found, suite), reading=_reading(found, suite) + crosses, width=1040)


def _mark_failures(figure: Figure, rows: pd.DataFrame, memory: str) -> str:
    """Draw a cross where a case had no result, on memory if that ran out, else on time; the sentence that says so."""
    tops = (rows["ratio"].max(), max(rows[memory].max(), rows["limit"].max()))
    failed = rows.loc[rows["status"].isin(["out of memory", "timeout", "skipped"])]
    ours = _ours(rows)
    for place, (name, case) in enumerate(failed.groupby("name", sort=False)):
        own = look(case.to_dict(orient="records")[0], ours)
        col = 2 if case["reason"].str.contains("memory").any() else 1
        figure.add_scatter(
            row=1, col=col, x=case["length"], y=[tops[col - 1] * 1.25 * 1.22**place] * len(case), legendgroup=name,
            showlegend=False, mode="markers", marker={"symbol": "x", "size": 10, "color": own["color"]},
            hovertext=case["reason"], hovertemplate="%{hovertext}<extra>" + str(name) + "</extra>",
        )  # fmt: skip
    if failed.empty:
        return ""
    return f" A cross is a case without a result ({failed.iloc[0]['reason'].partition(' with ')[0]})."


def _ours(rows: pd.DataFrame) -> list[str]:
    """Return the implementations among the cases, in order."""
    return [str(name) for name in rows.loc[rows["method"] == "attend", "implementation"].unique()]


def look(case: dict[str, Any], ours: list[str]) -> dict[str, str]:
    """Return colour and dash of a case's line."""
    if case["method"] == "attend":
        color = IMPLEMENTATIONS[ours.index(case["implementation"]) % len(IMPLEMENTATIONS)]
        return {"color": color, "dash": DASHES[case["statistics"]]}
    dashed = case["method"] in ("products", "flex") and case["statistics"] != "lse"
    return {"color": METHODS[case["method"]], "dash": "longdash" if dashed else "solid"}


def _ticks(values: pd.Series) -> list[float]:
    """Return round numbers that cover the values: 1, 2 and 5 times powers of ten, or closer ones."""
    low, high = values[values > 0].min(), values.max()
    digits = (1, 2, 5) if high > 4 * low else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    steps = [round(digit * 10.0**power, 9) for power in range(-6, 13) for digit in digits]
    return [step for step in steps if low / 2.5 < step < high * 2.5]


def size(count: float) -> str:
    """Return bytes in decimal units: 98.4 MB."""
    for unit, width in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= width:
            return f"{count / width:.3g} {unit}"
    return f"{count:.0f} B"


def _headline(found: Benchmark, suite: str) -> str:
    """Return the result in words and numbers of this run."""
    rows = found.suite(suite)
    most = int(rows["length"].max())
    longest = rows.loc[rows["length"] == most].to_dict(orient="records")
    if suite == "kernels":
        ours = [case for case in longest if case["method"] == "attend" and case["statistics"] == "columns"]
        said = ", ".join(f"{case['implementation']} {case['ratio']:.2f}x" for case in ours)
        return f"Row and column statistics at {most:,} tokens take {said} the time of sdpa"
    (ours,) = (case for case in longest if case["method"] == "stats")
    heads = f"Statistics of all heads at {most:,} tokens"
    if ours["status"] != "ok":
        return f"{heads} could not be measured: {ours['reason']}"
    return f"{heads} take {ours['ratio']:.2f}x the time of a plain forward pass"


def _reading(found: Benchmark, suite: str) -> str:
    settings, machine = found.manifest.options, found.machine
    shape, where = found.manifest.model.rpartition("/")[2], machine["device"]
    if suite == "kernels":
        shape = f"{settings['heads']} heads on {settings['kv_heads']} KV heads of {settings['head_dim']}, causal"
    if where == "CPU":
        where = f"{machine['processor']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"{shape}, {settings['dtype']}, on {where}; torch {machine['versions']['torch']}. Lines are medians of runs "
        "that took turns."
    )
