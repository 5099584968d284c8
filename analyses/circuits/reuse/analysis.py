"""The units of a comparison: those of four searches, each under the name of its search."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probe.analyses.circuits import costs
from probe.analyses.circuits.pairs_analysis import Nested
from probe.analyses.circuits.reuse.claims import CLAIMS
from probe.analyses.circuits.reuse.result import Reuse
from probe.analyses.circuits.reuse.settings import Settings
from probe.analyses.circuits.search.analysis import Search
from probe.frame.analysis import Analysis, Cost, Facts, Measured, Records, Unit
from probe.frame.run import runner

if TYPE_CHECKING:
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.saving.manifest import Manifest


class Comparison(Analysis[Settings, Reuse]):
    """The comparison of two tasks' circuits."""

    name, claims = "circuit reuse", CLAIMS

    def prepare(self, model: Model) -> None:
        self.searches = {name: Search(own) for name, own in self.settings.searches().items()}
        self.nested = {name: Nested(name, search) for name, search in self.searches.items()}
        for search in self.searches.values():
            search.ready(model)

    def inputs(self) -> dict[str, Any]:
        return {name: search.inputs() for name, search in self.searches.items()}

    def describe(self) -> str:
        chosen = self.settings
        tasks = f"{self.searches['first'].task.name} and {self.searches['second'].task.name}"
        return f"{tasks}, control {self.searches['control'].task.name}, {chosen.prompts} pairs of each"

    def expected(self, facts: Facts) -> int:
        return sum(search.expected(facts) for search in self.searches.values())

    def estimate(self, model: Model, speed: Speed) -> Cost:
        return costs.together([(name, each.estimate(model, speed)) for name, each in self.searches.items()])

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        return [unit for each in self.nested.values() for unit in each.plan(facts, records)]

    def measure(self, model: Model, unit: Unit) -> Measured:
        return self.nested[unit.name.partition("/")[0]].measure(model, unit)

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Reuse:
        found = {}
        for name, search in self.searches.items():
            own = replace(
                manifest, analysis=search.name, options=search.settings.to_dict(), seed=search.settings.seed,
                prompts=tuple(search.prompts),
            )  # fmt: skip
            found[name] = search.reduce(model, self.nested[name].records(records), own)
        return Reuse(manifest=replace(manifest, bos=self.searches["first"].bos), k=self.settings.keep, **found)


run = runner(Comparison, Settings)
