"""One stage of a search: which heads it keeps, and which inputs the next stage patches into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from probe.analyses.circuits.end_attention import EndAttention
from probe.analyses.circuits.roles import READS, called, is_right, is_wrong, reading
from probe.heads import Head
from probe.patching.effects import Effects
from probe.patching.nodes import Input, keys, queries, values

if TYPE_CHECKING:
    from probe.models import Model

LEAST = 1.0
"""Percent of the gap that a head of a circuit moves at least."""
ERRORS = 2.0
"""The least distance of an effect from zero, in standard errors."""


def stage_table(effects: Effects, stage: str, attention: EndAttention, *, keep: int) -> pd.DataFrame:
    """Return one row for each head: its effect, whether the stage keeps it, and what it is called."""
    percent, error = effects.normalised, effects.normalised_error
    order = percent.abs().argsort(descending=True, stable=True)[:keep].tolist()
    strong = (percent.abs() >= LEAST) & (percent.abs() >= ERRORS * error.nan_to_num(0.0))
    kept = {place for place in order if bool(strong[place])}
    heads: list[Head] = list(effects.nodes)  # pyright: ignore[reportAssignmentType]  # all heads were asked for
    return pd.DataFrame(
        {
            "stage": stage,
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "name": [str(head) for head in heads],
            "percent": percent.tolist(),
            "percent_error": error.tolist(),
            "raw": effects.raw.tolist(),
            "standard_error": effects.standard_error.tolist(),
            "kept": [place in kept for place in range(len(heads))],
            "role": [called(attention, head, float(percent[place])) for place, head in enumerate(heads)],
        }
    )


def next_inputs(model: Model, stage: str, table: pd.DataFrame, attention: EndAttention) -> Sequence[Input]:
    """Return the inputs that the next stage patches into: those of the kept heads that support the answer."""
    supporting = heads_of(table[table["kept"] & (table["percent"] > 0)])
    if stage == "logits":
        named = any(is_right(role) or is_wrong(role) for role in attention.roles)
        movers = [head for head in supporting if max(reading(attention, head)) >= READS] if named else supporting
        return queries(movers or supporting)
    return values(model, supporting) if stage == "queries" else keys(model, supporting)


def heads_of(rows: pd.DataFrame) -> list[Head]:
    """Return the heads of a table's rows, in their order."""
    return [Head(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
