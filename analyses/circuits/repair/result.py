"""The result of a repair: accuracy under each condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from probe.analyses.circuits.quotient import of_draws
from probe.analyses.circuits.repair.claims import HEADS_MATTER, REPAIRED, TOKENS_MATTER
from probe.analyses.circuits.repair.forcing import HEADS, NONE, REPAIR, RIGHT, TOKENS
from probe.frame.findings import Estimate, Finding
from probe.frame.tables import Table, columns, percent, written
from probe.heads import Head
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

MEANING = (
    "END's row of the heads is forced onto the tokens that the condition names, in equal parts. best: share of "
    "prompts whose right answer beats the other choices [Wilson's 95 % interval]. vocabulary: share whose right answer "
    "is first of all tokens. newly wrong, newly right: prompts whose answer changed against the model as it is (no "
    "heads)."
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Repair(Result):
    """The effect of forcing a task's heads onto the wrong answers of another task.

    heads: those that were forced, by their effects on the source. conditions: one row for each condition and draw:
    condition, draw, heads, best (share of prompts whose right answer beats the other choices) with best_low and
    best_high (Wilson, 95 %), top1 (over the vocabulary), newly_wrong and newly_right (by `best`), n.
    """

    source: str
    target: str
    heads: tuple[Head, ...]
    chance: float
    conditions: pd.DataFrame

    def to_df(self) -> pd.DataFrame:
        """Return one row for each condition, its draws averaged, in the order in which they ran."""
        numbers = ["best", "top1", "newly_wrong", "newly_right"]
        return self.conditions.groupby("condition", sort=False)[numbers].mean().reset_index()

    def value(self, condition: str, number: str = "best") -> float:
        """Return one number of a condition, averaged over its draws."""
        return float(self.conditions.loc[self.conditions["condition"] == condition, number].mean())

    def accuracy(self, condition: str) -> Estimate:
        """Return `best` of a condition, with bounds that span all its draws."""
        rows = self.conditions[self.conditions["condition"] == condition]
        bounds = zip(rows["best"], rows["best_low"], rows["best_high"], rows["n"], strict=True)
        return of_draws([Estimate(best, low, high, n=int(n)) for best, low, high, n in bounds]) or Estimate(0.0)

    def summary(self) -> tuple[str, ...]:
        names = " ".join(map(str, self.heads))
        return (
            f"The heads that read the wrong answer of {self.source} and demote it: {names}. Forced onto the wrong "
            f"answers of {self.target}, they change the share of prompts whose right answer beats the other "
            f"{round(1 / self.chance) - 1} from {self.value(NONE):.1%} to {self.value(REPAIR):.1%}; "
            f"{self.value(REPAIR, 'newly_wrong'):.0f} prompts turn wrong.",
            f"Controls: the same heads forced onto the right answer give {self.value(RIGHT):.1%}, onto random tokens "
            f"{self.value(TOKENS):.1%}; random heads forced onto the wrong answers give {self.value(HEADS):.1%}. "
            f"Chance is {self.chance:.1%}.",
            "The intervention is an oracle: the right answer says which answers are wrong. It is evidence about a "
            "mechanism and no gain.",
        )

    def findings(self) -> tuple[Finding, ...]:
        about = {"seed": self.manifest.seed, "command": self.manifest.command}
        controls = ((REPAIRED, NONE), (HEADS_MATTER, HEADS), (TOKENS_MATTER, TOKENS))
        return tuple(
            claim.finding(self.accuracy(REPAIR), self.accuracy(control), **about) for claim, control in controls
        )

    def tables(self) -> dict[str, Table]:
        mean = self.to_df()
        estimates = [self.accuracy(name) for name in mean["condition"]]
        mean = mean.assign(best_low=[each.low for each in estimates], best_high=[each.high for each in estimates])
        condition, heads = columns(condition="forced", heads="heads")
        numbers = columns(
            best=("best", percent, "best_low", "best_high"), top1=("vocabulary", percent),
            newly_wrong=("newly wrong", written(".1f")), newly_right=("newly right", written(".1f")),
        )  # fmt: skip
        title = f"{self.target}, heads of {self.source}: {' '.join(map(str, self.heads))}"
        means = f"{MEANING} Means of the draws; the interval spans all of them."
        drawn = Table(rows=self.conditions, columns=(condition, heads, *numbers), meaning=MEANING, title="every draw")
        return {
            "conditions": Table(rows=mean, columns=(condition, *numbers), meaning=means, title=title), "draws": drawn
        }  # fmt: skip

    def figures(self) -> dict[str, Plot]:
        """Return the share of right answers under each condition."""
        from probe.analyses.circuits.repair.figures import condition_figure

        return {"repair": condition_figure(self)}
