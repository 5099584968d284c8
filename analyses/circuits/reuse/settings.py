"""Settings of the comparison of two circuits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probe.analyses.circuits.search.settings import Settings as SearchSettings
from probe.analyses.circuits.tasks import check_name
from probe.frame.settings import Settings as Base
from probe.frame.settings import setting

FIRST, SECOND, AGAIN, CONTROL = "first", "second", "again", "control"
RUNS = (FIRST, SECOND, AGAIN, CONTROL)
"""The searches that are compared: both tasks, the first task on other prompts, and an unrelated task."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """How much of one task's circuit does another task use?

    A and B are built-in tasks (ioi, colored-objects, capitals, subject-verb, greater-than) or JSON Lines files of
    pairs. The default is ioi and colored-objects.

    The command searches the circuits of A and B, of A on other prompts, and of an unrelated task, two stages back from
    the logits. It counts the heads that A shares with each of the others among the largest effects of a stage. A on
    other prompts shows how much two circuits can share, and the unrelated task shows what they share without reuse. The
    output is the overlap by stage, beside chance, and the roles that the shared heads have in both tasks.
    """

    presets: ClassVar = {"quick": {"prompts": 8}, "report": {"prompts": 80}}

    first: str = setting("ioi", "First task", argument=True, metavar="A")
    second: str = setting("colored-objects", "Second task", argument=True, metavar="B")
    control: str = setting("subject-verb", "Unrelated task", metavar="TASK")
    prompts: int = setting(40, "Pairs of prompts of each task", least=2)
    keep: int = setting(10, "Heads of each stage that are compared, and that a stage keeps at most", least=1)
    stages: int = setting(2, "Stages to compare, as in `probe circuit`", least=1, most=4)
    freeze_mlps: bool = setting(False, "Keep MLPs at their clean values, as all other heads are kept")
    batch_size: int = setting(20, "Pairs that run at once, and that one unit of the run folder holds", least=1)

    def check(self) -> None:
        for name in (self.first, self.second, self.control):
            check_name(name)

    def searches(self) -> dict[str, SearchSettings]:
        """Return the settings of the four searches by name."""
        tasks = zip(RUNS, (self.first, self.second, self.first, self.control), strict=True)
        return {
            name: SearchSettings(
                task=task, seed=self.seed + (name == AGAIN), prompts=self.prompts, keep=self.keep, stages=self.stages,
                freeze_mlps=self.freeze_mlps, batch_size=self.batch_size, no_tests=True,
            )
            for name, task in tasks
        }  # fmt: skip
