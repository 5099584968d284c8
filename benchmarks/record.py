"""The result of a bench, saved and read back like any other result."""

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

    machine: device, processor, threads, memory and versions.
    checked: the tests that passed before anything was timed, and each implementation's distance from the reference.
    refused: implementations that cannot serve here, and the reason.
    cases: one row per case and length: status ("ok", "out of memory", "timeout", "error", "skipped") and reason; median
        and quartiles of the time in seconds; `ratio`, that median divided by the plain case's that it took turns with;
        `products`, that median divided by the matrix products' alone; memory in bytes: `held` when the case was ready,
        `peak`, and `growth`, their difference.
    times: one row per repetition, in the order in which they ran.
    """

    table_rows: ClassVar[int] = 30
    machine: dict[str, Any]
    checked: dict[str, Any]
    refused: dict[str, str]
    cases: pd.DataFrame
    times: pd.DataFrame

    def to_df(self) -> pd.DataFrame:
        """Return one row per case and length, as measured: suites, then lengths, then cases."""
        return self.cases

    def figures(self) -> dict[str, Plot]:
        """Return one figure for each suite: time and memory against length."""
        from probe.benchmarks.figures import comparison

        return {suite: comparison(self, suite) for suite in self.cases["suite"].unique()}

    def suite(self, name: str) -> pd.DataFrame:
        """Return the cases of one suite; of the plain cases, only the one that takes turns with `attend`."""
        others = (self.cases["method"] == "plain") & self.cases["peer"]
        return self.cases.loc[(self.cases["suite"] == name) & ~others]
