"""Settings of a repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from probe.analyses.circuits.search.settings import Settings as SearchSettings
from probe.analyses.circuits.tasks import check_name
from probe.frame.settings import Settings as Base
from probe.frame.settings import setting


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """Do the heads that demote the wrong answer on one task do it on another, when they are made to look?

    The command searches IOI for strong negative movers: heads that read the wrong name from END, the last token, and
    demote it. It forces their END rows onto the wrong colours of Colored Objects and measures how often the right
    colour beats the others. Random heads, random tokens and the right colour are forced for comparison.

    The intervention is an oracle, because the right answer says which colours are wrong. It tests a mechanism and does
    not improve the model.
    """

    presets: ClassVar = {"quick": {"prompts": 24, "source_prompts": 8, "draws": 2}, "report": {"draws": 10}}

    source: str = setting("ioi", "Task whose effects show the heads", metavar="TASK|FILE")
    target: str = setting(
        "colored-objects", 'Task whose prompts are repaired; it needs choices and the roles "right" and "wrong ..."',
        metavar="TASK|FILE",
    )  # fmt: skip
    source_prompts: int = setting(40, "Pairs of prompts of the source", least=2)
    prompts: int = setting(160, "Pairs of prompts of the target", least=2)
    least: float = setting(10.0, "Percent of the gap that a head of the source moves at least", least=0)
    draws: int = setting(5, "Draws of random heads, and of random tokens", least=1, adds=True)
    task_options: dict[str, Any] = setting(
        {}, "Option of the target, such as shots=2; repeat for several options", spelling="--set", metavar="NAME=VALUE"
    )
    batch_size: int = setting(16, "Pairs of the target that run at once", least=1)

    def check(self) -> None:
        for name in (self.source, self.target):
            check_name(name)

    def search(self) -> SearchSettings:
        """Return the settings of the search of the source."""
        return SearchSettings(
            task=self.source, prompts=self.source_prompts, seed=self.seed, stages=1, no_tests=True
        )  # fmt: skip
