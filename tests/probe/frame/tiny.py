"""A tiny analysis in two stages, on tiny models: the mean logit of prompts, and of the strongest prompt again.

`ran` counts the units that were measured in this process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

from probe.errors import UsageError
from probe.figures.plot import Plot
from probe.frame.analysis import Analysis, Cost, Measured, Prompt, Unit
from probe.frame.findings import Claim, Estimate, above
from probe.frame.run import runner
from probe.frame.scores import HeadScore
from probe.frame.settings import Settings, given, setting
from probe.saving.results import Result

POSITIVE = Claim(name="positive", text="Logits are positive", source="none", quantity="logit", rule=above(0))


@dataclass(frozen=True, kw_only=True)
class TinySettings(Settings):
    """How large are a few logits?

    A tiny analysis."""

    presets: ClassVar = {"quick": {"prompts": 1}, "report": {"prompts": 5}}

    prompts: int = setting(3, "Number of prompts", least=1, most=9)
    again: int = setting(0, "Number of further readings of the strongest prompt", least=0, adds=True)
    lengths: tuple[int, ...] = setting((8, 12), "Tokens of the prompts", least=2)
    scale: float = setting(1.0, "Factor of the logits", above=0, most=4)
    kind: str = setting("mean", "What is taken of the logits", choices=("mean", "max"))
    words: tuple[str, ...] = setting((), "Words", spelling="--word")
    file: Path | None = setting(None, "A file that decides the numbers")
    more: dict[str, int] = setting({}, "Further settings of the task")
    task: str | None = given("A word that only Python can give")

    def check(self) -> None:
        if self.kind == "max" and self.scale != 1:
            raise UsageError("--scale: expected 1 with --kind max")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Inner(Result):
    again: torch.Tensor

    def to_df(self) -> pd.DataFrame:
        return pd.DataFrame({"again": self.again.tolist()})

    def figures(self) -> dict[str, Plot]:
        return {}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tiny(Result):
    values: torch.Tensor
    strongest: str
    inner: Inner | None = None

    def to_df(self) -> pd.DataFrame:
        return pd.DataFrame({"value": self.values.tolist()})

    def figures(self) -> dict[str, Plot]:
        return {"values": Plot(go.Figure(go.Bar(y=self.values.tolist())), headline="Values", reading="One bar each.")}

    def findings(self):
        mean = float(self.values.mean())
        return (POSITIVE.finding(Estimate(mean, mean - 1, mean + 1, n=len(self.values))),)

    def head_scores(self) -> dict[str, HeadScore]:
        return {"value": HeadScore(values=self.values[None], unit="logit", sign="higher: larger")}


class TinyAnalysis(Analysis[TinySettings, Tiny]):
    name, claims = "tiny", (POSITIVE,)
    ran: ClassVar[list[str]] = []
    fails_at: ClassVar[str | None] = None

    def prepare(self, model) -> None:
        lengths = self.settings.lengths
        draw = torch.Generator().manual_seed(self.settings.seed)
        self.ids = [
            torch.randint(3, model.vocab, (lengths[n % len(lengths)],), generator=draw)
            for n in range(self.settings.prompts)
        ]

    def inputs(self):
        file = None if self.settings.file is None else hashlib.sha256(self.settings.file.read_bytes()).hexdigest()
        return {"task": self.settings.task, "file": file}

    def expected(self, facts) -> int:
        return self.settings.prompts + self.settings.again

    def estimate(self, model, speed) -> Cost:
        return Cost(seconds=6.0, memory=1, plain=2.0)

    def plan(self, facts, records):
        units = [Unit(f"prompt {n}", {"n": n}) for n in range(self.settings.prompts)]
        if any(unit.name not in records for unit in units):
            return units
        best = max(range(len(units)), key=lambda n: records[units[n].name]["value"])
        return units + [Unit(f"again {n}", {"n": best}) for n in range(self.settings.again)]

    def measure(self, model, unit) -> Measured:
        assert unit.name != self.fails_at
        self.ran.append(unit.name)
        (self.workspace(unit) / "checkpoint").write_text(unit.name)
        ids = self.ids[unit.arguments["n"]]
        logits = model.logits(ids).detach()[0, -1]
        value = float(logits.max() if self.settings.kind == "max" else logits.mean()) * self.settings.scale
        return Measured({"value": value, "of": (1, 2)}, [Prompt.of(ids, written=unit.arguments["n"])])

    def reduce(self, model, records, manifest) -> Tiny:
        values = {name: record["value"] for name, record in records.items() if name.startswith("prompt")}
        assert all(record["of"] == [1, 2] for record in records.values())  # as JSON gives it back, in every process
        again = torch.tensor([records[f"again {n}"]["value"] for n in range(self.settings.again)])
        return Tiny(
            manifest=manifest,
            values=torch.tensor([values[f"prompt {n}"] for n in range(self.settings.prompts)]),
            strongest=max(values, key=lambda name: values[name]),
            inner=Inner(manifest=replace(manifest, analysis="inner"), again=again) if self.settings.again else None,
        )


run = runner(TinyAnalysis, TinySettings)
