"""Settings of `probe intervene act`: the task, the heads to calibrate, and what a calibrated sink is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from probe.errors import UsageError
from probe.frame.settings import Settings as Base
from probe.frame.settings import given, setting

if TYPE_CHECKING:
    from probe.analyses.act.classification import Example


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """Does a model classify better if later attention sinks give up attention, and is that more than a label bias?

    One backward pass over the calibration split ranks all heads by how much calibrating their later sinks (tokens
    behind the first one that receive much attention whatever the query) lowers the loss. The best heads are then
    calibrated on every split, beside random heads, the worst heads, all heads, and a label bias fitted on the
    calibration split without touching the model. If the bias does as well, the gain is a shift of the label prior. The
    command prints accuracy, loss and AUC of each condition, and the claims of the paper with a verdict each.
    """

    presets: ClassVar = {"quick": {"draws": 2, "sweep": 12}, "report": {"sweep": 100}}

    task: Path | None = setting(
        None,
        'JSON lines with "prompt", "labels", "answer" (a label) and "split" ("calibration" and at least one other)',
        shown="100 short reviews, negative or positive",
    )
    examples: tuple[Example, ...] | None = given("A task as `Example` objects instead of a file")
    variant: str = setting(
        "release",
        "Rule for sinks: a column mean above 0.1, as in the released code (release), or above 5 / N with N tokens, as "
        "in the paper (paper)",
        choices=("release", "paper"),
    )
    beta: float = setting(0.4, "Share of its weight that a sink keeps", least=0, most=1)
    heads: int = setting(30, "Number of heads to calibrate", least=1)
    candidate_layers: tuple[int, ...] = setting(
        (), "Layers whose heads are ranked", least=0, shown="all but the first two and the last"
    )
    draws: int = setting(5, "Number of random sets of heads to compare with", least=1)
    sweep: int = setting(60, "Number of random heads to calibrate alone, to check the gradient filter", least=0)
    rule: str | None = setting(
        None, "Rule for sinks, as for `probe sinks`", choices=("absolute", "alpha-over-n", "alpha-times-uniform"),
        shown="that of --variant",
    )  # fmt: skip
    threshold: float | None = setting(None, "Threshold of the rule", above=0, shown="that of --rule or --variant")
    min_rows: int = setting(1, "Smallest number of queries that a sink's column mean must be over", least=1)
    spare: str | None = setting(
        None, "Sink that is never calibrated: the first token, or the first one that the rule flags",
        choices=("first-token", "first-flagged"), shown="first-flagged for release, first-token for paper",
    )  # fmt: skip
    prefix: int | None = setting(
        None, "Number of tokens from the start in which sinks are looked for", least=1, shown="the whole prompt"
    )

    def check(self) -> None:
        """Refuse two tasks."""
        if self.examples is not None and self.task is not None:
            raise UsageError("--task: expected a task file or examples, got both")
