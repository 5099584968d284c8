"""Tables for readers: which columns of a data frame are shown, how their numbers are written, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def decimal(value: float, *, digits: int = 2) -> str:
    """Return a share as tables of this field write it, without a leading zero; NaN is n/a."""
    if value != value:
        return "n/a"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def percent(value: float) -> str:
    """Return a share as a whole percentage: 94%."""
    return "n/a" if isnan(value) else f"{value:.0%}"


def written(pattern: str) -> Callable[[Any], str]:
    """Return a function that writes a number by a Python format; NaN is n/a."""
    return lambda value: "n/a" if value is None or value != value else format(value, pattern)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column that people see: of the data frame's column `name`, under `header`.

    write: how a value is written; text is written as it is. low, high: columns of the interval, shown in brackets where
    both are numbers.
    """

    name: str
    header: str
    write: Callable[[Any], str] = str
    low: str | None = None
    high: str | None = None

    def cell(self, row: dict[Any, Any]) -> str:
        """Return one row's text."""
        text = self.write(row[self.name])
        if self.low is None or self.high is None or isnan(row[self.low]) or isnan(row[self.high]):
            return text
        return f"{text} [{self.write(row[self.low])}, {self.write(row[self.high])}]"


def columns(**shown: Any) -> tuple[Column, ...]:
    """Return columns by their names: a header, or a header with the further fields of a `Column` in order."""
    fields = ("header", "write", "low", "high")
    found: dict[str, Any] = {name: [each] if isinstance(each, str) else each for name, each in shown.items()}
    return tuple(Column(**{"name": name, **dict(zip(fields, each, strict=False))}) for name, each in found.items())


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a result.

    rows: everything, best first; JSON has all of it. columns: what is printed. meaning: one line under the table that
    says what the numbers mean and what they are divided by. top: how many rows are printed unless --top says otherwise;
    None prints all.
    """

    rows: pd.DataFrame
    columns: tuple[Column, ...]
    meaning: str
    title: str = ""
    top: int | None = None
