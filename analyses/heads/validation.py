"""Validation of retrieval heads: without them the model must stop retrieving, and go on doing everything else.

The highest-scoring heads are pruned while the model answers held-out needles (other cities, answers and prose than
those that the heads were scored on), and so are random heads in the same number. Retrieval must break for the former
only. Closed-book questions and the loss on prose show what else breaks. The official mask (fill "uniform") harms both
in SmolLM2-135M, so a failure to retrieve under this mask is weaker evidence. Fill "zero" removes the heads' output, and
the claims are tested with it.

Accuracies carry Wilson intervals, losses and differences bootstrap intervals over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.heads.claims import MASK, NECESSARY, SPECIFIC
from probe.analyses.heads.pruning_conditions import Condition, Conditions
from probe.analyses.heads.validation_samples import CLOSED_BOOK, NEEDLES, PROSE
from probe.analyses.measures.agreement import top_heads
from probe.analyses.measures.intervals import bootstrap_mean, wilson
from probe.errors import UsageError
from probe.frame.analysis import Facts
from probe.frame.findings import Estimate, Finding
from probe.frame.tables import Table, columns, decimal
from probe.heads import Head
from probe.saving.manifest import Manifest
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot

KS = (5, 10, 20, 30)
"""Numbers of the best heads that are pruned; a model has at least twice the number, for the control."""

GROUPS = ("top", "random", "same layers")
TITLES = {
    NEEDLES: "Held-out needles answered, heads pruned {where}:",
    CLOSED_BOOK: "Closed-book questions answered, heads pruned {where}:",
    PROSE: "Loss on prose in nats per token, heads pruned {where}:",
}
VALUES = {
    NEEDLES: "Share of the held-out needles whose answer holds more than half of the words, with Wilson intervals",
    CLOSED_BOOK: "Share of the questions answered from memory, with Wilson intervals",
    PROSE: "Mean loss in nats per token, with bootstrap intervals over the passages",
}
COLUMNS = (
    "top: the best heads; random: other heads in the same number; same layers: other heads of the best heads' layers. "
    "fill: a pruned head outputs zero, or attends evenly to all that it sees (uniform, the official mask)"
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Validation(Result):
    """The effect of pruning on retrieval, on closed-book answers and on the loss on prose.

    conditions: one row per task, group of heads, number k and fill: value (accuracy, or loss in nats per token) with
    low and high, rise of the loss over the unpruned one with rise_low and rise_high, samples, and heads, the mean
    number of heads pruned.
    details: one row per sample and condition, with what the model wrote and which heads were pruned.
    ranked: all heads, the best first. phase: "decode" or "all".
    """

    conditions: pd.DataFrame
    details: pd.DataFrame
    ranked: tuple[Head, ...]
    ks: tuple[int, ...]
    fills: tuple[str, ...]
    phase: str

    def value(self, task: str, group: str, k: int = 0, fill: str | None = None) -> float:
        """Return the accuracy, or the loss for the task "prose"; raise KeyError for a condition that was not run."""
        return float(self.row(task, group, k, fill)["value"])

    def row(self, task: str, group: str, k: int = 0, fill: str | None = None) -> dict[str, Any]:
        """Return one condition's row of the table; the unpruned condition is "none"."""
        found = _of(self.conditions.loc[self.conditions["task"] == task], group, k, fill)
        if found.empty:
            raise KeyError(f"no condition {task}, {group}, {k}, {fill}")
        return found.to_dict("records")[0]

    def to_df(self) -> pd.DataFrame:
        """Return the table of conditions."""
        return self.conditions

    def figures(self) -> dict[str, Plot]:
        """Return needles (accuracy against heads pruned) and specificity (closed-book accuracy and prose loss)."""
        from probe.analyses.heads.validation_figures import needle_curves, specificity_curves

        return {"needles": needle_curves(self), "specificity": specificity_curves(self)}

    def tables(self) -> dict[str, Table]:
        """Return a table of each task: one row for each number of heads and fill, one column for each group."""
        where = "while answering" if self.phase == "decode" else "while reading and answering"
        groups = {group: (group, _decimal_or_blank, f"{group} low", f"{group} high") for group in GROUPS}
        shown = columns(k=("heads", lambda k: f"{k:.0f}" if k else "none"), fill="fill", **groups)
        return {
            task: Table(
                rows=pd.DataFrame(list(self._rows(task))), columns=shown, meaning=f"{VALUES[task]}. {COLUMNS}",
                title=title.format(where="everywhere" if task == PROSE else where),
            )
            for task, title in TITLES.items()
        }  # fmt: skip

    def findings(self) -> tuple[Finding, ...]:
        """Return what the pruning says of the claims; one about the official mask needs both fills."""
        k = sorted(self.ks)[min(1, len(self.ks) - 1)]
        fill = "zero" if "zero" in self.fills else self.fills[0]
        zero = uniform = None
        if {"zero", "uniform"} <= set(self.fills):
            zero, uniform = (self._estimate(PROSE, "top", k, each, "rise") for each in ("zero", "uniform"))
        return (
            self.finding(
                NECESSARY, self._estimate(NEEDLES, "top", k, fill), self._estimate(NEEDLES, "random", k, fill)
            ),
            self.finding(SPECIFIC, self._fall(CLOSED_BOOK, k, fill), self._fall(NEEDLES, k, fill)),
            self.finding(MASK, uniform, zero),
        )

    def _rows(self, task: str) -> Iterator[dict[str, Any]]:
        kept = ("value", "low", "high", "rise", "rise_low", "rise_high")
        base = self.row(task, "none")
        for k, fill in ((0, None), *((k, fill) for fill in self.fills for k in self.ks)):
            row: dict[str, Any] = {"k": k, "fill": fill or ""}
            for group in GROUPS:
                # the unpruned value stands in the first column only
                cell = self.row(task, group, k, fill) if k else base if group == "top" else {}
                named = {f"{group} {name}".removesuffix(" value"): cell.get(name, torch.nan) for name in kept}
                row |= named if task == PROSE else {key: each for key, each in named.items() if "rise" not in key}
            yield row

    def _estimate(self, task: str, group: str, k: int, fill: str, column: str = "value") -> Estimate:
        row = self.row(task, group, k, fill)
        low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
        return Estimate(float(row[column]), float(row[low]), float(row[high]), n=int(row["samples"]))

    def _fall(self, task: str, k: int, fill: str) -> Estimate:
        """Return the paired fall of an accuracy when the best heads are pruned, with its bootstrap interval."""
        details = self.details.loc[self.details["task"] == task]
        intact, pruned = (_values(_of(details, *each)) for each in (("none", 0, None), ("top", k, fill)))
        return _mean(intact - pruned, seed=self.manifest.seed)


def validation(
    records: Iterable[Mapping[str, Any]], conditions: Conditions, phase: str, manifest: Manifest
) -> Validation:
    """Return the result of the samples' records, each as `Check.measure` makes it."""
    details = pd.DataFrame(list(_details(records, conditions)))
    table = [
        _summary(task, condition, details.loc[details["task"] == task], seed=conditions.seed)
        for task in (NEEDLES, CLOSED_BOOK, PROSE)
        for condition in conditions.all
    ]
    return Validation(
        manifest=manifest, conditions=pd.DataFrame(table), details=details, ranked=conditions.ranked,
        ks=conditions.ks, fills=conditions.fills, phase=phase,
    )  # fmt: skip


def ranking(scores: Tensor | Sequence[Head], facts: Facts) -> tuple[Head, ...]:
    """Return every head of the model, best first; heads without a score and heads left out come last."""
    every = [Head(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)]
    if isinstance(scores, Tensor):
        if scores.shape != (facts.n_layers, facts.n_heads):
            raise UsageError(
                f"expected scores of {facts.n_layers} layers x {facts.n_heads} heads of {facts.name}, "
                f"got {list(scores.shape)}"
            )
        scores = top_heads(scores, len(every))
    given = [Head(*head) for head in scores]
    wrong = [head for head in given if head not in set(every)]
    if wrong or len(set(given)) != len(given):
        raise UsageError(f"expected different heads of {facts.name}, got {wrong[0] if wrong else given}")
    return (*given, *(head for head in every if head not in set(given)))


def _details(records: Iterable[Mapping[str, Any]], conditions: Conditions) -> Iterator[dict[str, Any]]:
    """Yield one row per sample and condition."""
    for sample in records:
        columns = zip(conditions.all, sample["values"], sample["generated"], sample["heads"], strict=True)
        for condition, value, generated, heads in columns:
            yield {
                "task": sample["task"],
                "sample": sample["sample"],
                **asdict(condition),
                "value": value,
                "answer": sample["answer"],
                "generated": generated,
                "heads": " ".join(heads),
            }


def _summary(task: str, condition: Condition, details: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Return one condition of one task over its samples."""
    mine = _of(details, condition.group, condition.k, condition.fill)
    values = _values(mine)
    if task == PROSE:
        loss, rise = (_mean(each, seed=seed) for each in (values, values - _values(_of(details, "none", 0, None))))
        low, high = loss.low, loss.high
    else:
        rise = Estimate(torch.nan)
        low, high = wilson(int(values.sum()), len(values))
    return {
        "task": task,
        **asdict(condition),
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "rise": rise.value,
        "rise_low": rise.low,
        "rise_high": rise.high,
        "samples": len(values),
        "heads": float(mine["heads"].str.split().str.len().mean()),
    }


def _mean(values: Tensor, *, seed: int) -> Estimate:
    """Return the mean over samples with its bootstrap interval."""
    low, high = (float(bound) for bound in bootstrap_mean(values, seed=seed))
    return Estimate(float(values.mean()), low, high, n=len(values))


def _of(table: pd.DataFrame, group: str, k: int, fill: str | None) -> pd.DataFrame:
    same = (table["group"] == group) & (table["k"] == k)
    return table.loc[same & (table["fill"].isna() if fill is None else table["fill"] == fill)]


def _values(table: pd.DataFrame) -> Tensor:
    return torch.tensor(table["value"].to_numpy(), dtype=torch.float64)


def _decimal_or_blank(value: float) -> str:
    return "" if value != value else decimal(value)
