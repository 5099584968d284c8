"""The tidy table: one row for each layer, head, text, unit and statistic, written text by text.

layer, head   from 0
text          the place where the text stands
unit          the number of the unit in its text, from 0 (for --unit token, the token's position)
part          what the unit is: token, word, sentence, the role of a turn, thinking or answer
statistic     its name
mean          over the queries of the unit, with `low` and `high`, the 95 % interval (NaN for one query)
n             the number of these queries
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from probe.analyses.stats.averages import student


def rows(
    units: pd.DataFrame,
    means: Tensor,
    deviations: Tensor,
    *,
    texts: Sequence[str],
    parts: Sequence[str],
    statistics: Sequence[str],
    layers: Sequence[int],
) -> pd.DataFrame:
    """Return the rows of some units, one after the other: means and deviations are [units, statistics, layers, heads].

    units: text (index in `texts`), unit, part and queries of each. The other arguments name the values of the columns.
    """
    mean, queries = means.numpy(), units["queries"].to_numpy(dtype=np.int32)
    half = student(deviations.numpy(), queries[:, None, None, None]).astype(np.float32)
    unit, statistic, layer, head = (index.ravel() for index in np.indices(mean.shape))
    return pd.DataFrame(
        {
            "layer": np.array(layers, dtype=np.int16)[layer],
            "head": head.astype(np.int16),
            "text": pd.Categorical.from_codes(units["text"].to_numpy()[unit], list(texts)),
            "unit": units["unit"].to_numpy(dtype=np.int32)[unit],
            "part": pd.Categorical(units["part"].to_numpy()[unit], list(parts)),
            "statistic": pd.Categorical.from_codes(statistic, list(statistics)),
            "mean": mean.ravel(),
            "low": (mean - half).ravel(),
            "high": (mean + half).ravel(),
            "n": queries[unit],
        }
    )


def write_parquet(pieces: Iterable[pd.DataFrame], path: Path) -> None:
    """Write the pieces, one after the other, as one Parquet file."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    writer: ParquetWriter | None = None
    try:
        for piece in pieces:
            table = pa.Table.from_pandas(piece, preserve_index=False)
            writer = writer or ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def write_csv(pieces: Iterable[pd.DataFrame], path: Path) -> None:
    """Write the pieces, one after the other, as one CSV file with a header."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        for number, piece in enumerate(pieces):
            piece.to_csv(file, index=False, header=number == 0, float_format="%.6g")


WRITERS = {"parquet": write_parquet, "csv": write_csv}
