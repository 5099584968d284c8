"""The result of a comparison: four circuits, and what the first shares with the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.reuse.claims import CHANCE, SHARED, shared_of
from probe.analyses.circuits.reuse.settings import AGAIN, CONTROL, FIRST, RUNS, SECOND
from probe.analyses.circuits.roles import ROLES
from probe.analyses.circuits.search.result import Circuit
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore
from probe.frame.tables import Table, columns, decimal, written
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reuse(Result):
    """Two circuits compared.

    first, second: the circuits of the two tasks. again: the first task on other prompts. control: an unrelated task. k:
    how many heads of each stage are compared.
    """

    first: Circuit
    second: Circuit
    again: Circuit
    control: Circuit
    k: int

    @property
    def runs(self) -> dict[str, Circuit]:
        """Return the four circuits by name."""
        return {name: getattr(self, name) for name in RUNS}

    @property
    def tasks(self) -> dict[str, str]:
        """Return the task of each circuit."""
        return {name: run.task for name, run in self.runs.items()}

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Return a row for each stage of all runs and each head: stage, layer, head, name, percent and role by run."""
        found = []
        for stage in self.first.receivers:
            if any(stage not in run.receivers for run in self.runs.values()):
                continue
            table = self.first.stage(stage)[["stage", "layer", "head", "name"]].sort_values(["layer", "head"])
            table = table.reset_index(drop=True)
            for name, run in self.runs.items():
                own = run.stage(stage).sort_values(["layer", "head"])
                table[name] = own["percent"].to_numpy()
                table[f"{name}_role"] = own["role"].to_numpy()
            found.append(table)
        return pd.concat(found, ignore_index=True)

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """Return one row for each stage and each run beside the first: stage, run, task, shared, chance, weighted."""
        return pd.DataFrame(
            [
                {"stage": stage, "run": name, "task": self.tasks[name]} | overlap(rows, name, k=self.k)
                for stage, rows in self.effects.groupby("stage", sort=False)
                for name in (SECOND, AGAIN, CONTROL)
            ]
        )

    def to_df(self) -> pd.DataFrame:
        """Return the overlaps, by stage."""
        return self.overlaps

    def shared(self, stage: str = "logits") -> list[str]:
        """Return the heads that are among the k largest effects of both tasks, by the first task's effect."""
        rows = self.effects[self.effects["stage"] == stage]
        both = set(_top(rows, FIRST, self.k)) & set(_top(rows, SECOND, self.k))
        return [name for name in _top(rows, FIRST, self.k) if name in both]

    def roles(self, stage: str = "logits") -> pd.DataFrame:
        """Return, role by role, the heads among the k largest effects of either task: role, first, second, both.

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

    def summary(self) -> tuple[str, ...]:
        first, second, control = (self.tasks[name] for name in (FIRST, SECOND, CONTROL))
        found = []
        for stage, rows in self.overlaps.groupby("stage", sort=False):
            own = rows.set_index("run")
            found.append(
                f"Stage {stage}: {first} and {second} share {own.loc[SECOND, 'shared']} of {self.k} heads (weighted "
                f"overlap {own.loc[SECOND, 'weighted']:.2f}). {first} shares {own.loc[AGAIN, 'shared']} with itself on "
                f"other prompts ({own.loc[AGAIN, 'weighted']:.2f}) and {own.loc[CONTROL, 'shared']} with {control} "
                f"({own.loc[CONTROL, 'weighted']:.2f}). Chance gives {own.loc[SECOND, 'chance']:.1f}."
            )
        return (*found, f"Shared on the logits: {' '.join(self.shared()) or 'no head'}.")

    def findings(self) -> tuple[Finding, ...]:
        about = {"seed": self.manifest.seed, "command": self.manifest.command}
        own = self.overlaps[self.overlaps["stage"] == "logits"].set_index("run")
        shared, control = (shared_of(int(own.loc[name, "shared"]), self.k) for name in (SECOND, CONTROL))
        chance = float(own.loc[SECOND, "chance"]) / self.k
        by_chance = CHANCE.finding(shared, Estimate(chance, chance, chance), **about)
        return SHARED.finding(shared, control, **about), by_chance

    def tables(self) -> dict[str, Table]:
        first, second = self.tasks[FIRST], self.tasks[SECOND]
        beside = {SECOND: second, AGAIN: f"{first}, other prompts", CONTROL: self.tasks[CONTROL]}
        shown = columns(
            stage="stage", beside=f"{first} and", shared=f"shared of {self.k}", chance=("by chance", written(".1f")),
            weighted=("weighted", decimal),
        )  # fmt: skip
        roles = columns(role="role", first=first, second=second, both="same role in both")
        return {
            "overlaps": Table(
                rows=self.overlaps.assign(beside=self.overlaps["run"].map(beside)),
                columns=shown,
                meaning=f"shared: heads that are among the {self.k} largest effects of both, whatever their sign. "
                "weighted: sum over heads of the smaller of both effects, each divided by the sum of its task's "
                "effects: 1 for the same effects up to a factor, 0 for effects of different heads. "
                f"{first} on other prompts is full reuse; {self.tasks[CONTROL]} is the unrelated control.",
            ),
            "roles": Table(
                rows=self.roles(),
                columns=roles,
                meaning=f"The {self.k} largest effects on the logits, by what the head's END row reads. {ROLES}",
                title="roles",
            ),
        }

    def head_scores(self) -> dict[str, HeadScore]:
        return {
            f"{run}: {stage}": score
            for run, circuit in self.runs.items()
            for stage, score in circuit.head_scores().items()
        }

    def figures(self) -> dict[str, Plot]:
        """Return the two circuits side by side, every head's two effects, and the overlaps beside their controls."""
        from probe.analyses.circuits.reuse.figures import joined_circuits, overlap_bars, scatter

        return {"circuits": joined_circuits(self), "scatter": scatter(self), "overlaps": overlap_bars(self)}


def overlap(table: pd.DataFrame, other: str, *, k: int) -> dict[str, float]:
    """Return what a run shares with the first: heads among the k largest effects, that by chance, and weighted."""
    shared = set(_top(table, FIRST, k)) & set(_top(table, other, k))
    p, q = (torch.tensor(table[name].tolist(), dtype=torch.float64) for name in (FIRST, other))
    return {"shared": len(shared), "chance": k * k / len(table), "weighted": weighted(p, q)}


def weighted(p: Tensor, q: Tensor) -> float:
    """Return sum_h min(|p_h|, |q_h|), both as shares of their sums: 1 for p = c q, 0 for effects of different heads."""
    shares = [each.abs() / each.abs().sum() for each in (p, q)]
    return float(torch.minimum(*shares).sum())


def _top(rows: pd.DataFrame, run: str, k: int) -> list[str]:
    """Return the names of the k heads with the largest effects; ties go to the earlier head."""
    order = rows[run].abs().sort_values(ascending=False, kind="stable").index[:k]
    return [str(name) for name in rows.loc[order, "name"]]
