"""The tables of `probe sinks`, each with the line that says what its numbers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.analyses.sinks.settings import MIN_MAGNITUDE
from probe.frame.tables import Column, Table, decimal, percent, written

if TYPE_CHECKING:
    from probe.analyses.sinks.result import Sinks

LAYER = Column(name="layer", header="layer")
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
        columns=(
            LAYER,
            Column(name="first_mass", header="to first token", write=decimal, low="low", high="high"),
            Column(name="later", header="later sinks", write=decimal),
            Column(name="value_ratio", header="value norm ratio", write=decimal),
            Column(name="largest", header="largest |x|", write=SIZE),
            Column(name="median", header="median |x|", write=TWO),
        ),
        meaning="to first token: share of a head's attention, mean over later queries, heads and texts, with the 95% "
        f"bootstrap interval over texts. later sinks: mean number per head and text ({sink}). value norm ratio: norm "
        "of the first value vector over the median norm of the others. |x|: of the residual stream after the layer, "
        "over tokens and dimensions, mean over texts.",
    )


def _heads(found: Sinks) -> Table:
    mass = {"low": "first_mass_low", "high": "first_mass_high"}
    return Table(
        title="Heads that look at the first token most",
        rows=found.to_df(),
        columns=(
            LAYER,
            Column(name="head", header="head"),
            Column(name="first_mass", header="to first token", write=decimal, **mass),
            Column(name="column_mean", header="column mean", write=decimal),
            Column(name="later_sinks", header="later sinks", write=decimal),
            Column(name="value_ratio", header="value norm ratio", write=decimal),
        ),
        meaning="As for layers, for each head. column mean: mean weight of the first token over all queries.",
        top=10,
    )


def _tokens(found: Sinks, sink: str) -> Table:
    return Table(
        title="Tokens that are a sink of most heads",
        rows=found.tokens(),
        columns=(
            Column(name="text", header="text"),
            Column(name="position", header="position"),
            Column(name="token", header="token", write=repr),
            Column(name="share", header="heads", write=percent),
            Column(name="layers", header="layers where most"),
        ),
        meaning=f"heads: share of all heads whose sink the token is ({sink}). layers where most: number of layers in "
        "which it is a sink of more than half of the heads.",
        top=12,
    )


def _rules(found: Sinks) -> Table:
    return Table(
        title="Later sinks by rule",
        rows=found.rules(),
        columns=(
            Column(name="rule", header="rule", write=lambda name: name.replace("_", "-")),
            Column(name="min_rows", header="queries"),
            Column(name="least", header="fewest", write=TWO),
            Column(name="most", header="most", write=TWO),
        ),
        meaning="queries: smallest number of queries that a column mean must be over. fewest, most: number of later "
        "sinks per head, mean over heads, in the text that has the fewest and in the one that has most.",
    )


def _writes(found: Sinks) -> Table:
    return Table(
        title="Where massive dimensions are written",
        rows=found.writes(),
        columns=(
            Column(name="dim", header="dimension"),
            LAYER,
            Column(name="block", header="written by"),
            Column(name="change", header="change", write=written("+,.0f")),
            Column(name="after", header="after it", write=SIZE),
        ),
        meaning="Of the first token's stream, means over texts. change: what the sub-block adds to the dimension, if "
        f"that is a tenth of the largest value there or {MIN_MAGNITUDE:g}. after it: the value then.",
    )


def _conditions(found: Sinks) -> Table:
    layer = int(found.causes["layer"].iloc[0])
    return Table(
        title=f"Dimension {found.dims[0]} set after layer {layer}",
        rows=found.conditions(),
        columns=(
            Column(name="condition", header="condition"),
            Column(name="loss", header="loss", write=TWO),
            Column(name="rise", header="rise", write=written("+.3f"), low="low", high="high"),
            Column(name="attention", header="attention to it", write=decimal),
        ),
        meaning="Of the first token's stream. none: no change. zero, mean: the dimension is set to zero, or to its "
        "mean over the other texts. control dim, random dim: another dimension is set to zero. only this dim: all "
        "others are set to zero. loss: nats per token, mean over texts. rise: over the loss without a change, with the "
        "95% bootstrap interval over texts. attention to it: share of the attention that the first token receives in "
        f"the layers after {layer}.",
    )
