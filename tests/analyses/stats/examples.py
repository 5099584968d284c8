"""Results of `probe stats` written by hand: two texts, two statistics, and units of one kind or of two roles."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import torch

from probe.analyses.stats.result import TextStatistics
from probe.analyses.stats.statistics import ENTROPY, mass
from probe.saving.manifest import manifest_of
from probe.saving.results import Result

NAMES = ("notes.jsonl, line 1", "notes.jsonl, line 2")


def example(parts: tuple[str, ...] = ("sentence", "sentence", "sentence"), unit: str = "sentence") -> TextStatistics:
    """Return a result of one layer of two heads: two units in the first text, one in the second."""
    entropy = torch.tensor([[1.0, 2.0], [3.0, 2.0], [4.0, 0.0]])  # units, heads
    share = torch.tensor([[0.5, 0.1], [0.7, 0.3], [1.0, 0.4]])
    queries = [4, 1, 9]
    spread = torch.tensor([0.2, torch.nan, 0.3])
    return TextStatistics(
        manifest=manifest_of(None, analysis="stats", options={"unit": unit}),
        texts=pd.DataFrame({"text": NAMES, "tokens": [6, 10], "hash": ["0" * 16, "1" * 16]}),
        units=pd.DataFrame(
            {"text": [0, 0, 1], "unit": [0, 1, 0], "part": parts, "start": [0, 9, 0], "end": [8, 11, 30],
             "queries": queries}
        ),
        means=torch.stack([entropy, share], dim=1)[:, :, None],
        deviations=spread[:, None, None, None].expand(3, 2, 1, 2).contiguous(),
        statistics={each.name: asdict(each) for each in (ENTROPY, mass("first"))},
        layers=(0,),
        unit=unit,
        format="parquet",
    )  # fmt: skip


def results() -> list[Result]:
    """Return the examples; the analysis has no claims, so there is no verdict to show."""
    return [example(), example(("user", "assistant", "user"), unit="turn")]


EXAMPLES = {"stats": results}
