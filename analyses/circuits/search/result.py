"""The result of a search: the circuit's heads, their effects and roles, and what knock-outs say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.quotient import Z, of_draws, quotient
from probe.analyses.circuits.roles import ROLES
from probe.analyses.circuits.search.claims import FAITHFUL
from probe.analyses.circuits.search.settings import STAGES
from probe.analyses.circuits.search.stages import heads_of
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore
from probe.frame.tables import Table, columns, decimal, percent, written
from probe.heads import Head
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

HEADS_MEANING = (
    "LD: logit(good) - logit(bad) at END, the last token. effect: change of the mean LD when the head writes along the "
    "path of its stage what it writes in the corrupted prompt, in percent of the gap (mean corrupted LD less mean "
    "clean LD); positive supports the answer; n/a if the gap is within its error. logits: the same change, not "
    f"divided. ±: standard errors over prompts. role: what the head's END row reads. {ROLES}"
)
TESTS_MEANING = (
    "LD: mean logit difference after the knock-out, means of the draws where there are several. value is divided by "
    "the span, LD of the whole model less LD with every head knocked out. faithfulness: the share of the span that is "
    "left. completeness: how much LD differs between the circuit and the whole model when the same heads (count: "
    "heads) are taken out of both; small where nothing outside the circuit does their work. minimality: the share of "
    "the span that the circuit loses without one head."
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Circuit(Result):
    """The heads of a task's circuit.

    effects: one row for each stage and head: stage, layer, head, name, percent and percent_error (of the gap), raw and
    standard_error (logits), kept, role. receivers: what each stage patched into, by name. attention: END's row of every
    head over the roles. tests: one row for each knock-out: test, what, heads, ld, ld_error and value; test_ld: the
    logit differences of those rows, [tests, prompts]. behaviour: accuracy and LD of the model on the prompts. gap: mean
    LD of corrupted less that of clean prompts; gap_error: its standard error.
    """

    task: str
    effects: pd.DataFrame
    receivers: dict[str, list[str]]
    attention: pd.DataFrame
    tests: pd.DataFrame
    test_ld: Tensor
    behaviour: dict[str, float | int | None]
    gap: float
    gap_error: float
    facts: dict[str, Any]

    def stage(self, name: str) -> pd.DataFrame:
        """Return the effects of one stage, largest first."""
        rows = self.effects[self.effects["stage"] == name]
        return rows.sort_values("percent", key=abs, ascending=False, kind="stable", ignore_index=True)

    def heads(self, stage: str | None = None) -> list[Head]:
        """Return the heads that one stage, or all stages, kept, in the model's order."""
        rows = self.effects[self.effects["kept"] & ((self.effects["stage"] == stage) | (stage is None))]
        return sorted(set(heads_of(rows)))

    def percent(self, stage: str = "logits", column: str = "percent") -> Tensor:
        """Return one column of a stage's effects as a map [layers, heads]; percent of the gap unless `column` says."""
        rows = self.effects[self.effects["stage"] == stage]
        table = torch.zeros(int(rows["layer"].max()) + 1, int(rows["head"].max()) + 1, dtype=torch.float64)
        table[rows["layer"].tolist(), rows["head"].tolist()] = torch.tensor(rows[column].tolist()).double()
        return table

    def value(self, test: str, what: str) -> float:
        """Return the value of one knock-out test, averaged over its draws."""
        rows = self.tests[(self.tests["test"] == test) & (self.tests["what"] == what)]
        return float(rows["value"].mean())

    @property
    def divides(self) -> bool:
        """Return whether the gap is larger than its error, so that percentages of it mean something."""
        return abs(self.gap) > Z * self.gap_error  # never for NaN, the error of a single prompt

    def faithfulness(self, what: str) -> list[Estimate]:
        """Return the faithfulness of the circuit, or of each of the random ones, with its interval over prompts."""
        rows = self.tests.reset_index(drop=True).query("test == 'faithfulness'")
        whole, nothing = (self.test_ld[rows.index[rows["what"] == name][0]] for name in ("whole model", "nothing"))
        own = [self.test_ld[place] for place in rows.index[rows["what"] == what]]
        return [quotient(each - nothing, whole - nothing) for each in own]

    def summary(self) -> tuple[str, ...]:
        first, ld = self.stage("logits").iloc[0], float(self.behaviour["ld"] or 0.0)
        moved = f"{first['percent']:+.1f} ± {first['percent_error']:.1f} % of the gap between them"
        if not self.divides:
            moved = f"the LD by {first['raw']:+.2f} ± {first['standard_error']:.2f}; the gap is within its error"
        share = percent(float(self.behaviour["top1"] or 0.0))
        lines = [
            f"The right answer is first in the vocabulary for {share} of {self.behaviour['prompts']} clean prompts. "
            f"The mean LD is {ld:.2f} logits, and {ld + self.gap:.2f} on the corrupted prompts.",
            f"On its direct path to the logits {first['name']} (role: {first['role']}) has the largest effect: it "
            f"moves {moved}.",
        ]
        if len(self.tests):
            own, others = self.faithfulness("circuit")[0], of_draws(self.faithfulness("random"))
            kept = [
                "an unknown share" if each is None or not each.known else percent(each.value) for each in (own, others)
            ]
            lines.append(
                f"With every head but the circuit's {len(self.heads())} knocked out, {kept[0]} of the logit difference "
                f"is left; with random circuits of the same size, {kept[1]}."
            )
        return tuple(lines)

    def findings(self) -> tuple[Finding, ...]:
        found = [None]
        if len(self.tests):
            found = [self.faithfulness("circuit")[0], of_draws(self.faithfulness("random"))]
        return (FAITHFUL.finding(*found, seed=self.manifest.seed, command=self.manifest.command),)

    def to_df(self) -> pd.DataFrame:
        """Return the heads that the stages kept, from the logits backwards, largest effect first."""
        kept = pd.concat([self.stage(name) for name in STAGES if name in self.receivers])
        return kept[kept["kept"]].reset_index(drop=True)

    def tables(self) -> dict[str, Table]:
        rows, nan = self.to_df(), float("nan")
        if not self.divides:
            rows = rows.assign(percent=nan, percent_error=nan)
        shown = columns(
            stage="stage", name="head", percent=("effect, %", written("+.1f")), percent_error=("±", written(".1f")),
            raw=("logits", written("+.3f")), standard_error=("±", written(".3f")), role="role",
        )  # fmt: skip
        title = f"heads of {self.task} by stage, from the logits backwards"
        found = {"heads": Table(rows=rows, columns=shown, meaning=HEADS_MEANING, title=title)}
        if len(self.tests):
            tests = self.tests if self.faithfulness("circuit")[0].known else self.tests.assign(value=nan)
            mean = tests.groupby(["test", "what"], sort=False)[["heads", "ld", "value"]].mean().reset_index()
            whole, two = written(".0f"), written(".2f")
            shown = columns(test="test", what="of", heads=("heads", whole), ld=("LD", two), value=("value", decimal))
            found["tests"] = Table(rows=mean, columns=shown, meaning=TESTS_MEANING, title="knock-outs")
        return found

    def head_scores(self) -> dict[str, HeadScore]:
        sign = "positive: the head supports the answer on this path; negative: it works against it"
        found = {}
        for stage in self.receivers if self.divides else ():
            values, half = self.percent(stage), Z * self.percent(stage, "percent_error")
            bounds = {"low": values - half, "high": values + half}
            found[stage] = HeadScore(values=values, unit="percent of the gap", sign=sign, **bounds)
        return found

    def figures(self) -> dict[str, Plot]:
        """Return the kept heads by stage and layer, the effects on the logits, and the knock-outs, if any."""
        from probe.analyses.circuits.search.figures import circuit_figure, effect_map, knockout_figure

        drawn = {"circuit": circuit_figure(self), "heads": effect_map(self)}
        return drawn | ({"tests": knockout_figure(self)} if len(self.tests) else {})
