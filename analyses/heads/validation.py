"""The causal check of retrieval heads: without them the model must stop retrieving, and go on doing everything else.

The highest-scoring heads are pruned while the model answers held-out needles (other cities, other answers, other
prose), and so are random heads in the same number. Retrieval must break for the former only. Questions without a book
and the loss on prose say what else broke: the official mask (`uniform`: the head attends evenly to everything) harms
them too, so its broken retrieval proves little. Removing the head's output (`zero`) is the default reading.

Accuracies carry Wilson intervals, losses bootstrap intervals over passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.heads.needle_runs import Plan
from probe.analyses.heads.needles import FAMILIES, HELD_OUT
from probe.analyses.heads.pruned_runs import Phase
from probe.analyses.heads.pruning_conditions import Condition, Conditions, Fill
from probe.analyses.heads.retrieval import Progress, RetrievalHeads
from probe.analyses.heads.validation_samples import CLOSED_BOOK, NEEDLES, PROSE, Check, Sample
from probe.analyses.measures.intervals import bootstrap_mean, wilson
from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import UsageError
from probe.heads import Head
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, carry_out, config_of
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Validation(Result):
    """What pruning does to retrieval, to closed-book answers and to the loss on prose.

    conditions: one row per task, group of heads, number k and fill: value (accuracy, or loss in nats per token) with
    low and high, rise of the loss over the unpruned one with rise_low and rise_high, samples, and heads, how many were
    pruned.
    details: one row per sample and condition, with what the model wrote and which heads were pruned.
    ranked: the heads that were tested, best first. phase: "decode" or "all".
    """

    conditions: pd.DataFrame
    details: pd.DataFrame
    ranked: tuple[Head, ...]
    ks: tuple[int, ...]
    fills: tuple[str, ...]
    phase: str

    def value(self, task: str, group: str, k: int = 0, fill: str | None = None) -> float:
        """Accuracy, or loss for the task "prose", under one condition; KeyError for one that was not run."""
        return float(self.row(task, group, k, fill)["value"])

    def row(self, task: str, group: str, k: int = 0, fill: str | None = None) -> dict[str, Any]:
        """One condition's row of the table; the unpruned one is "none"."""
        table = self.conditions
        same = (table["task"] == task) & (table["group"] == group) & (table["k"] == k)
        same &= table["fill"].isna() if fill is None else table["fill"] == fill
        if not same.any():
            raise KeyError(f"no condition {task}, {group}, {k}, {fill}")
        return table.loc[same].to_dict("records")[0]

    def findings(self) -> tuple[str, ...]:
        """The check in sentences, one per fill: what breaks with the heads and what does not."""
        base = self.value(NEEDLES, "none")
        closed, loss = self.value(CLOSED_BOOK, "none"), self.value(PROSE, "none")
        sentences = [f"Unpruned: {base:.0%} of held-out needles, {closed:.0%} closed-book, prose loss {loss:.2f}."]
        for fill in self.fills:
            for k in self.ks:
                top, others, beside = (self.value(NEEDLES, each, k, fill) for each in ("top", "random", "same layers"))
                closed, loss = self.value(CLOSED_BOOK, "top", k, fill), self.value(PROSE, "top", k, fill)
                sentences.append(
                    f"{k} heads, {fill}: needles {top:.0%} without the top heads, {others:.0%} without random ones, "
                    f"{beside:.0%} without others of the same layers; closed-book {closed:.0%}, prose loss {loss:.2f}."
                )
        return tuple(sentences)

    def to_df(self) -> pd.DataFrame:
        """The table of conditions."""
        return self.conditions

    def figures(self) -> dict[str, Plot]:
        """needles: accuracy against heads pruned. specificity: closed-book accuracy and prose loss."""
        from probe.analyses.heads.validation_figures import needle_curves, specificity_curves

        return {"needles": needle_curves(self), "specificity": specificity_curves(self)}


def validate(
    model: Model,
    scores: RetrievalHeads | Tensor | Sequence[Head],
    *,
    ks: Sequence[int] = (5, 10, 20, 30),
    fills: Sequence[Fill] = ("zero", "uniform"),
    phase: Phase = "decode",
    lengths: Sequence[int] = (300, 600),
    depths: Sequence[float] = (10, 30, 50, 70, 90),
    families: Sequence[str] = tuple(FAMILIES),
    samples: int = 1,
    haystack: Haystack | None = None,
    seed: int = 1,
    prompt: Literal["chat", "plain"] = "chat",
    max_new_tokens: int = 24,
    passages: int = 6,
    passage_tokens: int = 128,
    batch_size: int = 16,
    out: RunFolder | str | Path | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Accuracy and loss with the top heads pruned, against random heads, on held-out samples.

    scores: a result of `run`, a map [layers, heads], or heads, best first; heads that are left out rank last.
    ks: how many of the top heads to prune. fills: "zero" removes the output, "uniform" is the official mask.
    phase: "decode" prunes while the answer is written, "all" the reading of the prompt too. batch_size: conditions that
    run at once, each with its own copy of the key-value cache.
    Raises UsageError where the model has fewer than twice max(ks) heads.
    """
    if phase not in ("decode", "all"):
        raise UsageError(f"--phase: expected decode or all, got {phase!r}")
    if batch_size < 1 or passages < 1 or passage_tokens < 2:
        raise UsageError(f"expected batch_size, passages >= 1, passage_tokens >= 2, got {batch_size}, {passages}, "
                         f"{passage_tokens}")  # fmt: skip
    conditions = Conditions(_ranked(model, scores), tuple(ks), tuple(fills), seed=seed)
    plan = Plan(
        haystack=language_reference() if haystack is None else haystack,
        lengths=tuple(lengths),
        depths=tuple(depths),
        families=tuple(families),
        samples=samples,
        seed=seed,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        pool=HELD_OUT,
    )
    plan.check(model)
    check = Check(model, plan, conditions, phase, passages, passage_tokens, batch_size)
    return carry_out(Validation, out, lambda: _config(check), lambda folder: _checked(check, folder, progress))


def _config(check: Check) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(check.model, "validation", check.options())


def _checked(check: Check, folder: RunFolder | None, progress: Progress | None) -> Validation:
    recorder = Recorder(
        check.model,
        analysis="validation",
        options=check.options(),
        seed=check.plan.seed,
        before=0.0 if folder is None else folder.seconds,
    )
    done: list[Sample] = [] if folder is None else folder.samples()
    for sample in check.samples(skip=len(done)):
        if folder is not None:
            folder.append(sample)
        done.append(sample)
        if progress is not None:
            progress(len(done), len(check))
    conditions = check.conditions
    details = pd.DataFrame(list(_details(done, conditions)))
    table = [
        _summary(task, condition, details.loc[details["task"] == task], seed=check.plan.seed)
        for task in (NEEDLES, CLOSED_BOOK, PROSE)
        for condition in conditions.all
    ]
    return Validation(
        manifest=recorder.manifest(prompts=[sample["prompt"] for sample in done], bos=done[0]["bos"]),
        conditions=pd.DataFrame(table),
        details=details,
        ranked=conditions.ranked,
        ks=conditions.ks,
        fills=conditions.fills,
        phase=check.phase,
    )


def _ranked(model: Model, scores: RetrievalHeads | Tensor | Sequence[Head]) -> tuple[Head, ...]:
    """Every head of the model, best first."""
    if isinstance(scores, RetrievalHeads):
        scores = scores.score
    if isinstance(scores, Tensor):
        if scores.shape != (model.n_layers, model.n_heads):
            raise UsageError(
                f"expected scores of {model.n_layers} layers x {model.n_heads} heads of {model.name}, "
                f"got {list(scores.shape)}"
            )
        order = scores.flatten().argsort(descending=True, stable=True).tolist()
        return tuple(Head(*divmod(index, model.n_heads)) for index in order)
    given = [Head(*head) for head in scores]
    wrong = [head for head in given if head not in set(model.heads())]
    if wrong or len(set(given)) != len(given):
        raise UsageError(f"expected different heads of {model.name}, got {wrong[0] if wrong else given}")
    return (*given, *(head for head in model.heads() if head not in set(given)))


def _details(done: Iterable[Sample], conditions: Conditions) -> Iterator[dict[str, Any]]:
    """One row per sample and condition."""
    for sample in done:
        columns = zip(conditions.all, sample["values"], sample["generated"], sample["heads"], strict=True)
        for condition, value, generated, heads in columns:
            yield {
                "task": sample["task"],
                "sample": sample["sample"],
                "group": condition.group,
                "k": condition.k,
                "fill": condition.fill,
                "value": value,
                "answer": sample["answer"],
                "generated": generated,
                "heads": " ".join(heads),
            }


def _summary(task: str, condition: Condition, details: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """One condition of one task over its samples."""
    mine = _of(details, condition)
    values = torch.tensor(mine["value"].to_numpy(), dtype=torch.float64)
    rise = rise_low = rise_high = float("nan")
    if task == PROSE:
        base = torch.tensor(_of(details, Condition("none", 0, None))["value"].to_numpy(), dtype=torch.float64)
        low, high = (float(bound) for bound in bootstrap_mean(values, seed=seed))
        rise_low, rise_high = (float(bound) for bound in bootstrap_mean(values - base, seed=seed))
        rise = float((values - base).mean())
    else:
        low, high = wilson(int(values.sum()), len(values))
    return {
        "task": task,
        "group": condition.group,
        "k": condition.k,
        "fill": condition.fill,
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "rise": rise,
        "rise_low": rise_low,
        "rise_high": rise_high,
        "samples": len(values),
        "heads": float(mine["heads"].str.split().str.len().mean()),
    }


def _of(details: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    same = (details["group"] == condition.group) & (details["k"] == condition.k)
    return details.loc[same & (details["fill"].isna() if condition.fill is None else details["fill"] == condition.fill)]
