"""The units of a search: behaviour, attention from END, the batches of each stage, then one knock-out after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from probe.analyses.circuits import costs
from probe.analyses.circuits.end_attention import EndAttention, end_attention
from probe.analyses.circuits.knockout import Bench
from probe.analyses.circuits.pairs_analysis import PairsAnalysis, sides
from probe.analyses.circuits.search.claims import CLAIMS
from probe.analyses.circuits.search.result import Circuit
from probe.analyses.circuits.search.settings import STAGES, Settings
from probe.analyses.circuits.search.stages import heads_of, next_inputs, stage_table
from probe.analyses.circuits.search.trials import TESTS, Trial, planned, scored
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.frame.analysis import Cost, Facts, Measured, Records, Unit
from probe.frame.run import runner
from probe.heads import Head
from probe.patching.effects import Effects
from probe.patching.nodes import Input
from probe.patching.paths import to_inputs, to_logits

if TYPE_CHECKING:
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.saving.manifest import Manifest


class Search(PairsAnalysis[Settings, Circuit]):
    """The search of a task's circuit."""

    name, claims = "circuit", CLAIMS
    _bench: Bench | None = None

    def prepare(self, model: Model) -> None:
        super().prepare(model)
        self.model = model

    def describe(self) -> str:
        return f"{super().describe()}, {self.settings.stages} stages"

    def expected(self, facts: Facts) -> int:
        chosen = self.settings
        tests = 0 if chosen.no_tests else 3 + 3 * chosen.draws + 2 * chosen.stages + chosen.keep
        return 2 + chosen.stages * len(self.parts) + tests

    def estimate(self, model: Model, speed: Speed) -> Cost:
        return costs.search(model, speed, self.settings, self.pairs)

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        found = [Unit("behaviour"), Unit("attention")]
        if "attention" not in records:
            return [*found, *self.batches("logits", stage="logits", into=())]
        tables, pending = self._traced(records)
        if pending is not None:
            stage, into = pending
            return [*found, *self.batches(stage, stage=stage, into=[list(each) for each in into])]
        if self.settings.no_tests:
            return found
        return found + [
            Unit(name, {"heads": [list(head) for head in heads]})
            for trial in self._trials(tables)
            for name, heads in trial.knock_outs.items()
        ]

    def measure(self, model: Model, unit: Unit) -> Measured:
        chosen = self.settings
        if unit.name == "behaviour":
            return self.measured(accuracy(model, self.pairs, seed=chosen.seed).to_dict(), corrupted=False)
        if unit.name == "attention":
            found = end_attention(model, self.pairs)
            return self.measured({"mass": found.mass.tolist(), "roles": list(found.roles)}, corrupted=False)
        if "batch" in unit.arguments:
            stage, part = unit.arguments["stage"], self.parts[unit.arguments["batch"]][1]
            options = {"freeze_mlps": chosen.freeze_mlps, "batch": chosen.batch_size}
            if stage == "logits":
                effects = to_logits(model, part, **options)
            else:
                into = [Input(*each) for each in unit.arguments["into"]]
                effects = to_inputs(model, part, into, end=stage == "queries", **options)
            return self.measured(sides(effects), part)
        if self._bench is None:
            self._bench = Bench(model, self.pairs, fill=chosen.fill, batch=chosen.batch_size)
        return self.measured(self._bench.score([Head(*head) for head in unit.arguments["heads"]]).tolist())

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Circuit:
        stages, _ = self._traced(records)
        tests, test_ld = pd.DataFrame(columns=list(TESTS)), torch.empty(0, len(self.pairs))
        if not self.settings.no_tests:
            tests, test_ld = scored(self._trials(stages), records)
        effects = stages["logits"][1]
        return Circuit(
            manifest=replace(manifest, bos=self.bos),
            task=self.task.name,
            effects=pd.concat([table for _, _, table in stages.values()], ignore_index=True),
            receivers={stage: [str(each) for each in into] or ["logits"] for stage, (into, _, _) in stages.items()},
            attention=_attention(records).to_df(),
            tests=tests,
            test_ld=test_ld,
            behaviour=records["behaviour"],
            gap=effects.gap,
            gap_error=float((effects.corrupted - effects.clean).double().std() / len(effects.clean) ** 0.5),
            facts=dict(self.task.facts),
        )

    def stage(self, records: Records, name: str) -> pd.DataFrame:
        """Return the table of a stage from the records of its units."""
        return self._traced(records)[0][name][2]

    def _traced(self, records: Records) -> tuple[Stages, tuple[str, Sequence[Input]] | None]:
        """Return the stages whose records are complete, and the next stage with the inputs that it patches into."""
        attention = _attention(records)
        found: Stages = {}
        into: Sequence[Input] = ()
        for stage in STAGES[: self.settings.stages]:
            if found and not into:
                break
            if any(unit.name not in records for unit in self.batches(stage)):
                return found, (stage, into)
            effects = self.effects(records, stage, self.model.heads())
            table = stage_table(effects, stage, attention, keep=self.settings.keep)
            found[stage] = into, effects, table
            into = next_inputs(self.model, stage, table, attention)
        return found, None

    def _trials(self, stages: Stages) -> list[Trial]:
        kept = {stage: heads_of(table[table["kept"]]) for stage, (_, _, table) in stages.items()}
        return planned(kept, self.model.heads(), draws=self.settings.draws, seed=self.settings.seed)


Stages = dict[str, tuple[Sequence[Input], Effects, pd.DataFrame]]
"""By stage: the inputs that were patched into, the effects of all heads, and their table."""


def _attention(records: Records) -> EndAttention:
    seen = records["attention"]
    return EndAttention(torch.tensor(seen["mass"]), tuple(seen["roles"]))


run = runner(Search, Settings)
