"""What a bench found, as a result that is saved and read back like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Benchmark(Result):
    """Times and memory of every case.

    machine: device, processor, threads, memory and versions. checked: the tests that passed before anything was timed,
    and how far each implementation was from the reference. refused: implementations that cannot serve here, and why.
    cases: one row per case and length: status ("ok", "out of memory", "timeout", "error", "skipped") and reason; median
    and quartiles of the time in seconds; `ratio` of that median to that of the plain case that it took turns with;
    `products`, the multiple of the time of the matrix products alone; memory in bytes: `held` when the case was ready,
    `peak`, and `growth`, their difference. times: one row per repetition, in the order in which they ran.
    """

    table_rows: ClassVar[int] = 30
    machine: dict[str, Any]
    checked: dict[str, Any]
    refused: dict[str, str]
    cases: pd.DataFrame
    times: pd.DataFrame

    def to_df(self) -> pd.DataFrame:
        """One row per case and length, as measured: suites, then lengths, then cases."""
        return self.cases

    def figures(self) -> dict[str, Plot]:
        """Time and memory against length, one figure for each suite."""
        from probe.benchmarks.figures import comparison

        return {suite: comparison(self, suite) for suite in self.cases["suite"].unique()}

    def suite(self, name: str) -> pd.DataFrame:
        """The cases of one suite; of the plain case that every peer takes turns with, the one beside our own."""
        others = (self.cases["method"] == "plain") & self.cases["peer"]
        return self.cases.loc[(self.cases["suite"] == name) & ~others]
