"""The result of `probe stats`: the mean of each statistic in each unit of text, from which all tables are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.measures.head_tables import head_table
from probe.analyses.stats import averages, tidy
from probe.frame.scores import HeadScore
from probe.frame.tables import Table, columns, decimal, written
from probe.heads import Head
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

WRITE = {"share": decimal, "nats": written(".2f"), "tokens": written(".1f")}
SAY = {"share": "{:.1%}", "nats": "{:.2f} nats", "tokens": "{:.1f} tokens"}
UNITS = {"share": "share of a query's attention", "nats": "nats", "tokens": "tokens"}


@dataclass(frozen=True)
class HeadMeans:
    """One statistic in one part of the texts: its mean over texts and the interval of that, [layers, heads] each."""

    mean: Tensor
    low: Tensor
    high: Tensor
    texts: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextStatistics(Result):
    """Attention statistics over texts.

    texts: one row a text: text (its name), tokens, hash. units: one row a unit: text (row of `texts`), unit (number in
    the text), part (its label), start and end (characters), queries. means, deviations: of each statistic over the
    queries of each unit, [units, statistics, layers, heads]. statistics: name -> the fields of its `Statistic`. layers:
    the model's number of each layer. unit: the kind of units. format: of the exported table.
    """

    texts: pd.DataFrame
    units: pd.DataFrame
    means: Tensor
    deviations: Tensor
    statistics: dict[str, dict[str, str]]
    layers: tuple[int, ...]
    unit: str
    format: str

    @property
    def parts_of_text(self) -> tuple[str, ...]:
        """Return the labels of the units, such as "user" and "assistant", in the order in which they first occur."""
        return tuple(dict.fromkeys(self.units["part"]))

    @cached_property
    def by_text(self) -> dict[str, Tensor]:
        """Return the mean of each text over its units: part -> [texts, statistics, layers, heads], NaN for none."""
        found = {}
        for part in self.parts_of_text:
            rows = torch.tensor((self.units["part"] == part).to_numpy())
            owner = torch.tensor(self.units["text"].to_numpy(dtype="int64"))[rows]
            found[part] = averages.over_units(self.means[rows], owner, len(self.texts))
        return found

    @cached_property
    def by_head(self) -> dict[str, dict[str, HeadMeans]]:
        """Return the mean over the texts with its interval: statistic -> part -> HeadMeans."""
        found: dict[str, dict[str, HeadMeans]] = {name: {} for name in self.statistics}
        for part, means in self.by_text.items():
            mean, low, high, texts = averages.over_texts(means, seed=self.manifest.seed)
            for index, name in enumerate(self.statistics):
                found[name][part] = HeadMeans(mean[index], low[index], high[index], texts)
        return found

    def tidy(self) -> pd.DataFrame:
        """Return one row for each layer, head, text, unit and statistic (`probe.analyses.stats.tidy`)."""
        return pd.concat(self._pieces(), ignore_index=True)

    def to_df(self) -> pd.DataFrame:
        """Return one row for each statistic, part, layer and head: mean over the texts, its interval, n texts."""
        return pd.concat([self._ranked(name) for name in self.statistics], ignore_index=True)

    def exports(self) -> dict[str, Callable[[Path], None]]:
        """Return the tidy table, written text by text in the format of the settings."""
        return {f"statistics.{self.format}": partial(tidy.WRITERS[self.format], self._pieces())}

    def tables(self) -> dict[str, Table]:
        """Return the table of heads of each statistic, the highest mean first."""
        return {name: self._table(name) for name in self.statistics}

    def summary(self) -> tuple[str, ...]:
        """Return, for each statistic and part, the mean over all heads and the heads at both ends."""
        return tuple(
            self._sentence(name, part, found)
            for name, by_part in self.by_head.items()
            for part, found in by_part.items()
        )

    def head_scores(self) -> dict[str, HeadScore]:
        """Return one score for each statistic, and for each part where the texts have several."""
        return {
            self._named(name, part): HeadScore(
                values=found.mean, low=found.low, high=found.high, unit=self.statistics[name]["unit"],
                sign=self.statistics[name]["sign"], layers=self.layers,
            )
            for name, by_part in self.by_head.items()
            for part, found in by_part.items()
        }  # fmt: skip

    def figures(self) -> dict[str, Plot]:
        """Return the map of each statistic."""
        from probe.analyses.stats.figures import statistic_map

        return {
            name.replace(" ", "-"): statistic_map(
                {part: found.mean for part, found in by_part.items()}, statistic=name,
                unit=self.statistics[name]["unit"], texts=len(self.texts),
                headline=self._sentence(name, *next(iter(by_part.items()))),
            )
            for name, by_part in self.by_head.items()
        }  # fmt: skip

    def _pieces(self) -> Iterator[pd.DataFrame]:
        """Yield the tidy rows of each text."""
        names = {
            "texts": list(self.texts["text"]), "parts": self.parts_of_text, "statistics": list(self.statistics),
            "layers": self.layers,
        }  # fmt: skip
        for _, units in self.units.groupby("text", sort=False):
            rows = slice(units.index[0], units.index[-1] + 1)  # the units of a text stand together
            yield tidy.rows(units, self.means[rows], self.deviations[rows], **names)

    def _named(self, name: str, part: str) -> str:
        """Say which statistic of which part; the part goes without saying where all units have the same."""
        return name if len(self.parts_of_text) == 1 else f"{name}, {part}"

    def _ranked(self, name: str) -> pd.DataFrame:
        """Return the rows of one statistic, the highest mean first."""
        pieces = [
            head_table({"mean": found.mean, "low": found.low, "high": found.high}).assign(part=part, n=found.texts)
            for part, found in self.by_head[name].items()
        ]
        table = pd.concat(pieces, ignore_index=True).sort_values("mean", ascending=False, kind="stable")
        table = table.assign(statistic=name, layer=table["layer"].map(dict(enumerate(self.layers))))
        return table[["layer", "head", "part", "statistic", "mean", "low", "high", "n"]]

    def _table(self, name: str) -> Table:
        unit, sign = self.statistics[name]["unit"], self.statistics[name]["sign"]
        part = {"part": "part"} if len(self.parts_of_text) > 1 else {}
        shown = columns(layer="layer", head="head", **part, mean=(name, WRITE[unit], "low", "high"), n="texts")
        meaning = (
            f"{name}: {UNITS[unit]}; mean over the queries of each unit of text ({self.unit}), then over the units of "
            f"a text, then over the texts, with the 95% bootstrap interval over texts in brackets; {sign}."
        )
        return Table(rows=self._ranked(name), columns=shown, meaning=meaning, title=name, top=10)

    def _sentence(self, name: str, part: str, found: HeadMeans) -> str:
        """Say the mean over all heads, and the heads at both ends."""
        words, say = self.statistics[name]["words"].capitalize(), SAY[self.statistics[name]["unit"]].format
        of = "" if len(self.parts_of_text) == 1 else f" ({part})"
        heads = found.mean.shape[1]
        ends = [divmod(int(at), heads) for at in (found.mean.argmin(), found.mean.argmax())]
        least, most = (f"{say(float(found.mean[at]))} ({Head(self.layers[at[0]], at[1])})" for at in ends)
        return (
            f"{words}{of} averages {say(float(found.mean.mean()))} over {found.mean.numel()} heads, "
            f"from {least} to {most}"
        )
