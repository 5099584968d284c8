"""Tables of heads: one row a head, best first, the same columns in every analysis."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor


def head_table(columns: Mapping[str, Tensor], *, n_kv_heads: int) -> pd.DataFrame:
    """Return one row per head: layer, head, kv_group and the columns [layers, heads]; sorted by the first column, NaN
    last.

    Ties keep the order of layer and head.
    """
    first = next(iter(columns.values()))
    layers, heads = first.shape
    table = pd.DataFrame(
        {
            "layer": [layer for layer in range(layers) for _ in range(heads)],
            "head": list(range(heads)) * layers,
        }
    )
    table["kv_group"] = table["head"] // (heads // n_kv_heads)
    for name, values in columns.items():
        if values.shape != first.shape:
            raise ValueError(f"column {name} must be {list(first.shape)} like the first, got {list(values.shape)}")
        table[name] = values.flatten().tolist()
    best = next(iter(columns))
    return table.sort_values(best, ascending=False, kind="stable", na_position="last", ignore_index=True)
