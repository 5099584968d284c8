"""Reuse: how much of one task's circuit another task uses, against what no reuse and full reuse would look like.

Merullo et al. 2024. Two tasks' effects are compared stage by stage in two ways:

    shared     how many of the k largest effects, whatever their sign, belong to the same heads; k * k / heads by chance
    weighted   sum over heads of min(|p|, |q|), p and q the effects of each task as shares of their sum

Two controls say what such a number is worth: the first task against itself on other prompts, which is as high as it can
get, and against an unrelated task. Heads that write to the logits on any task make an overlap that is nobody's circuit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.search import result as circuits
from probe.analyses.circuits.search.result import Circuit, Settings
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model

FIRST, SECOND, AGAIN, CONTROL = "first", "second", "again", "control"
RUNS = (FIRST, SECOND, AGAIN, CONTROL)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reuse(Result):
    """Two circuits compared.

    tasks: the task of each run: first, second, again (the first on other prompts), control. effects: one row for each
    stage and head: stage, layer, head, name, and the percent and role of the heads in each run. overlaps: one row for
    each stage and pair: shared, chance, weighted. k: how many heads of each stage are compared.
    """

    tasks: dict[str, str]
    effects: pd.DataFrame
    overlaps: pd.DataFrame
    k: int

    def to_df(self) -> pd.DataFrame:
        """The overlaps, by stage."""
        return self.overlaps

    def shared(self, stage: str = "logits") -> list[str]:
        """The heads that are among the k largest effects of both tasks, by the first task's effect."""
        rows = self.effects[self.effects["stage"] == stage]
        both = set(_top(rows, FIRST, self.k)) & set(_top(rows, SECOND, self.k))
        return [name for name in _top(rows, FIRST, self.k) if name in both]

    def roles(self, stage: str = "logits") -> pd.DataFrame:
        """Role by role, the heads among the k largest effects of either task: role, first, second, both (as names).

        A head is in `both` where it has the role in both tasks: the same head may do another job in each.
        """
        rows = self.effects[self.effects["stage"] == stage].set_index("name")
        found: dict[str, dict[str, list[str]]] = {}
        for run in (FIRST, SECOND):
            for name in _top(rows.reset_index(), run, self.k):
                role = str(rows.loc[name, f"{run}_role"])
                found.setdefault(role, {FIRST: [], SECOND: []})[run].append(name)
        return pd.DataFrame(
            [
                {"role": role, FIRST: " ".join(heads[FIRST]), SECOND: " ".join(heads[SECOND])}
                | {"both": " ".join(name for name in heads[FIRST] if name in heads[SECOND])}
                for role, heads in found.items()
            ]
        )

    @property
    def findings(self) -> tuple[str, ...]:
        """The analysis in sentences."""
        found = []
        for stage, rows in self.overlaps.groupby("stage", sort=False):
            own = rows.set_index("run")
            found.append(
                f"{stage}: {self.tasks[FIRST]} and {self.tasks[SECOND]} share {own.loc[SECOND, 'shared']} of {self.k} "
                f"heads (weighted {own.loc[SECOND, 'weighted']:.2f}); {self.tasks[FIRST]} with itself on other prompts "
                f"{own.loc[AGAIN, 'shared']} ({own.loc[AGAIN, 'weighted']:.2f}), with {self.tasks[CONTROL]} "
                f"{own.loc[CONTROL, 'shared']} ({own.loc[CONTROL, 'weighted']:.2f}); by chance "
                f"{own.loc[SECOND, 'chance']:.1f}"
            )
        return tuple(found)

    def figures(self) -> dict[str, Plot]:
        """circuits: the two side by side, shared heads joined. scatter: every head's two effects. overlaps."""
        from probe.analyses.circuits.reuse.figures import joined_circuits, overlap_bars, scatter

        return {"circuits": joined_circuits(self), "scatter": scatter(self), "overlaps": overlap_bars(self)}


def run(
    model: Model, first: str, second: str, *, control: str = "subject-verb", k: int = 10,
    settings: Settings | None = None, out: str | Path | None = None, progress: Progress | None = None,
) -> Reuse:  # fmt: skip
    """How much two tasks share, with both controls. settings: those of every search, but the task and the tests. out: a
    folder; each search has one of its own inside, and is continued or read from there. Raises UsageError."""
    plan = searches(first, second, control=control, settings=settings)
    tasks = {name: circuits.prompts(model, own) for name, own in plan.items()}  # all refusals before anything runs
    found: dict[str, Circuit] = {}
    for number, (name, own) in enumerate(plan.items()):

        def step(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(plan) * total)

        folder = None if out is None else Path(out) / name
        found[name] = circuits.run(model, settings=own, task=tasks[name], out=folder, progress=step)
    result = compare(found, k=k)
    if out is not None:
        result.save(out)
    return result


def searches(
    first: str, second: str, *, control: str = "subject-verb", settings: Settings | None = None
) -> dict[str, Settings]:
    """What each of the four searches does."""
    base = replace(settings or Settings(stages=2), tests=False)
    return {
        FIRST: replace(base, task=first),
        SECOND: replace(base, task=second),
        AGAIN: replace(base, task=first, seed=base.seed + 1),
        CONTROL: replace(base, task=control),
    }


def compare(found: dict[str, Circuit], *, k: int) -> Reuse:
    """The comparison of four searches, by the names in `RUNS`."""
    effects, overlaps = [], []
    for stage in found[FIRST].receivers:
        if any(stage not in run.receivers for run in found.values()):
            continue
        table = found[FIRST].stage(stage)[["stage", "layer", "head", "name"]].sort_values(["layer", "head"])
        table = table.reset_index(drop=True)
        for name, run in found.items():
            own = run.stage(stage).sort_values(["layer", "head"])
            table[name] = own["percent"].to_numpy()
            table[f"{name}_role"] = own["role"].to_numpy()
        effects.append(table)
        for name in (SECOND, AGAIN, CONTROL):
            overlaps.append({"stage": stage, "run": name, "task": found[name].task} | overlap(table, name, k=k))
    return Reuse(
        manifest=found[FIRST].manifest,
        tasks={name: run.task for name, run in found.items()},
        effects=pd.concat(effects, ignore_index=True),
        overlaps=pd.DataFrame(overlaps),
        k=k,
    )


def overlap(table: pd.DataFrame, other: str, *, k: int) -> dict[str, float]:
    """What a run shares with the first: heads among the k largest effects, that number by chance, and weighted."""
    shared = set(_top(table, FIRST, k)) & set(_top(table, other, k))
    p, q = (torch.tensor(table[name].tolist(), dtype=torch.float64) for name in (FIRST, other))
    return {"shared": len(shared), "chance": k * k / len(table), "weighted": weighted(p, q)}


def weighted(p: Tensor, q: Tensor) -> float:
    """sum_h min(|p_h|, |q_h|), each a share of its sum: 1 for equal effects up to a factor, 0 for disjoint ones."""
    shares = [each.abs() / each.abs().sum() for each in (p, q)]
    return float(torch.minimum(*shares).sum())


def _top(rows: pd.DataFrame, run: str, k: int) -> list[str]:
    """Names of the k heads with the largest effects; ties go to the earlier head."""
    order = rows[run].abs().sort_values(ascending=False, kind="stable").index[:k]
    return [str(name) for name in rows.loc[order, "name"]]
