"""Settings of the search of a circuit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probe.analyses.circuits.task_settings import TaskSettings
from probe.frame.settings import setting

STAGES = ("logits", "queries", "values", "keys")
FILLS = ("corrupted", "mean", "zero")


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Through which heads does a model's answer to a task come?

    TASK is ioi (the default), colored-objects, capitals, subject-verb or greater-than. FILE is a JSON Lines file: each
    line has "clean", "corrupted", "good" and "bad", and may have "roles" that say where the answers stand.

    The search goes stage by stage from the logits backwards. Each stage replaces what one head writes by what it writes
    in the corrupted prompt, along its path into the heads that the stage before kept, and measures the change of the
    logit difference LD = logit(good) - logit(bad) at END, the last token. Then every head outside the circuit is
    knocked out, beside random circuits of the same size. The output is the circuit's heads with their effects and
    roles, and the LD that is left after each knock-out.
    """

    presets: ClassVar = {"quick": {"prompts": 8, "stages": 2, "draws": 2}, "report": {"draws": 10}}

    keep: int = setting(10, "Heads that a stage keeps at most", least=1)
    stages: int = setting(
        4, "Stages to go back: 1 is the logits; 2 adds the movers' queries, 3 the values and 4 the keys of the heads "
        "that act on those", least=1, most=len(STAGES),
    )  # fmt: skip
    freeze_mlps: bool = setting(False, "Keep MLPs at their clean values, as all other heads are kept")
    fill: str = setting(
        "corrupted", "What a knocked-out head writes: what it writes in the corrupted prompt, the mean of that over "
        "prompts of the same group, or zero", choices=FILLS,
    )  # fmt: skip
    draws: int = setting(5, "Random circuits, and random halves of the circuit, that are knocked out", least=1)
    no_tests: bool = setting(False, "Leave out the knock-outs", adds=True)
