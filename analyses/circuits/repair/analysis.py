"""The units of a repair: those of the search of the source, then one condition after another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from probe.analyses.circuits import costs
from probe.analyses.circuits.pairs_analysis import Nested, PairsAnalysis
from probe.analyses.circuits.repair.claims import CLAIMS
from probe.analyses.circuits.repair.forcing import Answers, Condition, answers, compared, conditions, wrong_columns
from probe.analyses.circuits.repair.result import Repair
from probe.analyses.circuits.repair.settings import Settings
from probe.analyses.circuits.search.analysis import Search
from probe.analyses.circuits.search.stages import heads_of
from probe.analyses.circuits.tasks.registry import task
from probe.errors import ProbeError, UsageError
from probe.frame.analysis import Cost, Facts, Measured, Records, Unit
from probe.frame.run import runner
from probe.heads import Head

if TYPE_CHECKING:
    from probe.analyses.circuits.tasks.task import Task
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.saving.manifest import Manifest


class Repairing(PairsAnalysis[Any, Repair]):
    """The repair of one task with the mechanism of another; `pairs` are those of the target."""

    name, claims = "circuit repair", CLAIMS
    settings: Settings

    def made(self, model: Model) -> Task:
        chosen = self.settings
        return task(model, chosen.target, prompts=chosen.prompts, seed=chosen.seed, **chosen.task_options)

    def prepare(self, model: Model) -> None:
        super().prepare(model)
        wrong_columns(self.pairs)
        if self.pairs.choices is None:
            raise UsageError(f"a repair needs prompts with choices, and those of {self.task.name} have none")
        self.model = model
        self.search = Search(self.settings.search())
        self.search.ready(model)
        self.source = Nested("source", self.search)

    def inputs(self) -> dict[str, Any]:
        return super().inputs() | {"source pairs": self.search.inputs()["pairs"]}

    def describe(self) -> str:
        return f"{super().describe()}, repaired with heads of {self.search.task.name}"

    def expected(self, facts: Facts) -> int:
        return self.search.expected(facts) + 3 + 2 * self.settings.draws

    def estimate(self, model: Model, speed: Speed) -> Cost:
        forcing = costs.repairing(model, speed, self.settings, self.pairs)
        return costs.together([("source", self.search.estimate(model, speed)), ("conditions", forcing)])

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        if pending := self.source.plan(facts, records):
            return pending
        return [_unit(each) for each in self._conditions(self._heads(records))]

    def measure(self, model: Model, unit: Unit) -> Measured:
        if unit.name.startswith(self.source.prefix):
            return self.source.measure(model, unit)
        chosen, heads = unit.arguments, tuple(Head(*head) for head in unit.arguments["heads"])
        keys = Condition(chosen["condition"], chosen["draw"], heads).columns(self.pairs, seed=self.settings.seed)
        found = answers(model, self.pairs, heads=heads, keys=keys, batch=self.settings.batch_size)
        return self.measured({"best": found.best.tolist(), "top": found.top.tolist()}, corrupted=False)

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Repair:
        heads = self._heads(records)
        before: Answers | None = None
        rows = []
        for each in self._conditions(heads):
            kept = records[_unit(each).name]
            given = Answers(torch.tensor(kept["best"]), torch.tensor(kept["top"]))
            before = given if before is None else before
            names = " ".join(map(str, each.heads))
            row = {"condition": each.name, "draw": each.draw, "heads": names}
            rows.append(row | compared(given, before, self.pairs.good))
        assert self.pairs.choices is not None
        return Repair(
            manifest=replace(manifest, bos=self.bos),
            source=self.search.task.name,
            target=self.task.name,
            heads=tuple(heads),
            chance=1 / self.pairs.choices.shape[1],
            conditions=pd.DataFrame(rows),
        )

    def _conditions(self, heads: list[Head]) -> list[Condition]:
        return conditions(self.model, heads, draws=self.settings.draws, seed=self.settings.seed)

    def _heads(self, records: Records) -> list[Head]:
        """Return the strong negative movers of the source; raise ProbeError where it has none."""
        rows = self.search.stage(self.source.records(records), "logits")
        rows = rows.sort_values("percent", key=abs, ascending=False, kind="stable")
        strong = rows[(rows["role"] == "negative mover") & (rows["percent"] >= self.settings.least) & rows["kept"]]
        if strong.empty:
            raise ProbeError(
                f"no head of {self.model.name} reads the wrong answer of {self.settings.source} and demotes it by "
                f"{self.settings.least:g} % of the gap, so there is nothing to repair with; lower --least"
            )
        return heads_of(strong)


def _unit(each: Condition) -> Unit:
    heads = [list(head) for head in each.heads]
    return Unit(f"{each.name} {each.draw}", {"condition": each.name, "draw": each.draw, "heads": heads})


run = runner(Repairing, Settings)
