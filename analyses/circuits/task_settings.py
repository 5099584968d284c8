"""The settings that say which pairs of prompts are measured; they are the same for every analysis of one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.analyses.circuits.tasks import check_name
from probe.frame.settings import Settings, given, setting

if TYPE_CHECKING:
    from probe.analyses.circuits.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The settings that decide which pairs of prompts are measured."""

    task: str = setting("ioi", "Built-in task, or JSON Lines file of pairs", argument=True, metavar="TASK|FILE")
    prompts: int = setting(40, "Pairs of prompts", least=2)
    task_options: dict[str, Any] = setting(
        {}, "Option of the task, such as shots=2 of colored-objects; repeat for several options",
        spelling="--set", metavar="NAME=VALUE",
    )  # fmt: skip
    batch_size: int = setting(20, "Pairs that run at once, and that one unit of the run folder holds", least=1)
    given_task: Task | None = given("A task made in Python, which replaces the one that `task` names")

    def check(self) -> None:
        if self.given_task is None:
            check_name(self.task)
