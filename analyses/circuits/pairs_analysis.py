"""Every analysis of a task makes the pairs, measures them in batches and joins the batches' effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from probe.analyses.circuits.task_settings import TaskSettings
from probe.analyses.circuits.tasks.registry import task
from probe.analyses.circuits.tasks.task import Task
from probe.frame.analysis import Analysis, Facts, Measured, Prompt, R, Records, Unit
from probe.patching.effects import Effects, joined
from probe.tokens import ids_hash

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs

T = TypeVar("T", bound=TaskSettings)


class PairsAnalysis(Analysis[T, R]):
    """Base of the analyses that measure the pairs of one task; `parts` holds the batches, with the rows of each."""

    task: Task
    pairs: Pairs

    def prepare(self, model: Model) -> None:
        self.task = self.made(model)
        self.pairs = self.task.pairs(model)
        texts = [text for pair in self.task.prompts for text in (pair.clean, pair.corrupted)]
        tokens = [model.tokens(text) for text in texts]
        self.bos = tokens[0].bos
        self.prompts = {each.hash: Prompt.of(each) for each in tokens}
        self.parts = list(self.pairs.batches(self.settings.batch_size))

    def made(self, model: Model) -> Task:
        """Return the task that the settings name or hold."""
        chosen = self.settings
        if chosen.given_task is not None:
            return chosen.given_task
        return task(model, chosen.task, prompts=chosen.prompts, seed=chosen.seed, **chosen.task_options)

    def inputs(self) -> dict[str, Any]:
        return {"pairs": self.pairs.hashes()}

    def describe(self) -> str:
        return f"{len(self.task)} pairs of prompts of {self.task.name}"

    def measured(self, data: Any, *read: Pairs, corrupted: bool = True) -> Measured:
        """Return a record with the prompts that it read: both sides of the pairs, or the clean side alone."""
        found = []
        for pairs in read or (self.pairs,):
            kept = torch.ones_like(pairs.clean, dtype=torch.bool) if pairs.padding is None else pairs.padding
            for side in (pairs.clean, pairs.corrupted)[: 2 if corrupted else 1]:
                found += [self.prompts[ids_hash(row[mask])] for row, mask in zip(side, kept.bool(), strict=True)]
        return Measured(data, found)

    def batches(self, name: str, **arguments: Any) -> list[Unit]:
        """Return one unit for each batch of pairs."""
        return [Unit(f"{name} {number}", {"batch": number, **arguments}) for number in range(len(self.parts))]

    def effects(self, records: Records, name: str, nodes: Sequence[object]) -> Effects:
        """Return the effects of all pairs, joined from the records of the batches."""
        parts = []
        for unit, (rows, _) in zip(self.batches(name), self.parts, strict=True):
            sides = {side: torch.tensor(values) for side, values in records[unit.name].items()}
            parts.append((rows, Effects(tuple(nodes), **sides)))
        return joined(parts, prompts=sum(len(rows) for rows, _ in self.parts))


def sides(effects: Effects) -> dict[str, Any]:
    """Return effects as the record of a unit, which `PairsAnalysis.effects` reads."""
    return {side: getattr(effects, side).tolist() for side in ("patched", "clean", "corrupted")}


class Nested:
    """An analysis that runs inside another: its units carry a prefix, and its numbers are those of a run alone."""

    def __init__(self, prefix: str, analysis: Analysis) -> None:
        self.prefix, self.analysis = f"{prefix}/", analysis

    def records(self, records: Records) -> dict[str, Any]:
        """Return the records of the inner analysis by the names of its own units."""
        return {name.removeprefix(self.prefix): data for name, data in records.items() if name.startswith(self.prefix)}

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        """Return the inner analysis' next units with the prefix; none once it is complete."""
        own = self.records(records)
        found = self.analysis.plan(facts, own)
        return [Unit(self.prefix + unit.name, unit.arguments) for unit in found if unit.name not in own]

    def measure(self, model: Model, unit: Unit) -> Measured:
        """Return the record of one of the inner analysis' units."""
        return self.analysis.measure(model, Unit(unit.name.removeprefix(self.prefix), unit.arguments))
