"""The tables of `probe sinks`, each with the line that says what its numbers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.analyses.sinks.settings import MIN_MAGNITUDE
from probe.frame.tables import Table, columns, decimal, percent, written

if TYPE_CHECKING:
    from probe.analyses.sinks.result import Sinks

SIZE, TWO = written(",.0f"), written(".2f")


def tables(found: Sinks) -> dict[str, Table]:
    """Return the tables by name; those of the massive dimension only where there is one."""
    sink = f"rule {found.rule.replace('_', '-')}, threshold {found.threshold:g}, at least {found.min_rows} queries"
    shown = {"layers": _layers(found, sink), "heads": _heads(found), "tokens": _tokens(found, sink)}
    shown["rules"] = _rules(found)
    return shown | ({"writes": _writes(found), "conditions": _conditions(found)} if found.dims else {})


def _layers(found: Sinks, sink: str) -> Table:
    return Table(
        title="Layers",
        rows=found.by_layer(),
        columns=columns(
            layer="layer", first_mass=("to first token", decimal, "low", "high"), later=("later sinks", decimal),
            value_ratio=("value norm ratio", decimal), largest=("largest |x|", SIZE), median=("median |x|", TWO),
        ),
        meaning="to first token: share of a head's attention, mean over later queries, heads and texts, with the 95% "
        f"bootstrap interval over texts. later sinks: mean number per head and text ({sink}). value norm ratio: norm "
        "of the first value vector over the median norm of the others. |x|: of the residual stream after the layer, "
        "over tokens and dimensions, mean over texts.",
    )  # fmt: skip


def _heads(found: Sinks) -> Table:
    return Table(
        title="Heads that look at the first token most",
        rows=found.to_df(),
        columns=columns(
            layer="layer", head="head", first_mass=("to first token", decimal, "first_mass_low", "first_mass_high"),
            column_mean=("column mean", decimal), later_sinks=("later sinks", decimal),
            value_ratio=("value norm ratio", decimal),
        ),
        meaning="As for layers, for each head. column mean: mean weight of the first token over all queries.",
        top=10,
    )  # fmt: skip


def _tokens(found: Sinks, sink: str) -> Table:
    return Table(
        title="Tokens that are a sink of most heads",
        rows=found.tokens(),
        columns=columns(
            text="text", position="position", token=("token", repr), share=("heads", percent),
            layers="layers where most",
        ),
        meaning=f"heads: share of all heads whose sink the token is ({sink}). layers where most: number of layers in "
        "which it is a sink of more than half of the heads.",
        top=12,
    )  # fmt: skip


def _rules(found: Sinks) -> Table:
    return Table(
        title="Later sinks by rule",
        rows=found.rules(),
        columns=columns(
            rule=("rule", lambda name: name.replace("_", "-")), min_rows="queries", least=("fewest", TWO),
            most=("most", TWO),
        ),
        meaning="queries: smallest number of queries that a column mean must be over. fewest, most: number of later "
        "sinks per head, mean over heads, in the text that has the fewest and in the one that has most.",
    )  # fmt: skip


def _writes(found: Sinks) -> Table:
    return Table(
        title="Where massive dimensions are written",
        rows=found.writes(),
        columns=columns(
            dim="dimension", layer="layer", block="written by", change=("change", written("+,.0f")),
            after=("after it", SIZE),
        ),
        meaning="Of the first token's stream, means over texts. change: what the sub-block adds to the dimension, if "
        f"that is a tenth of the largest value there or {MIN_MAGNITUDE:g}. after it: the value then.",
    )  # fmt: skip


def _conditions(found: Sinks) -> Table:
    layer = int(found.causes["layer"].iloc[0])
    return Table(
        title=f"Dimension {found.dims[0]} set after layer {layer}",
        rows=found.conditions(),
        columns=columns(
            condition="condition", loss=("loss", TWO), rise=("rise", written("+.3f"), "low", "high"),
            attention=("attention to it", decimal),
        ),
        meaning="Of the first token's stream. none: no change. zero, mean: the dimension is set to zero, or to its "
        "mean over the other texts. control dim, random dim: another dimension is set to zero. only this dim: all "
        "others are set to zero. loss: nats per token, mean over texts. rise: over the loss without a change, with the "
        "95% bootstrap interval over texts. attention to it: share of the attention that the first token receives in "
        f"the layers after {layer}.",
    )  # fmt: skip
