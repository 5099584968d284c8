"""Tables of heads: one row a head, best first, the same columns in every analysis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor


def head_table(columns: Mapping[str, Tensor], *, n_kv_heads: int | None = None) -> pd.DataFrame:
    """Return one row per head: layer, head, kv_group if asked for, and the columns [layers, heads].

    Rows are sorted by the first column, NaN last; ties keep the order of layer and head.
    """
    best, first = next(iter(columns.items()))
    layers, heads = first.shape
    layer, head = np.divmod(np.arange(layers * heads), heads)
    table = pd.DataFrame({"layer": layer, "head": head})
    if n_kv_heads is not None:
        table["kv_group"] = head // (heads // n_kv_heads)
    for name, values in columns.items():
        if values.shape != first.shape:
            raise ValueError(f"column {name} must be {list(first.shape)} like the first, got {list(values.shape)}")
        table[name] = values.flatten().tolist()
    return table.sort_values(best, ascending=False, kind="stable", na_position="last", ignore_index=True)
