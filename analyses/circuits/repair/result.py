"""Repair: one task's mechanism, found on another task, is set to work by hand.

Merullo et al. 2024, section 5. On IOI a head reads the wrong name from END and so demotes it. On Colored Objects the
same head is parked on the first token. Here the rows of END of the heads that IOI shows are forced onto the wrong
answers of the other task, in equal parts, and accuracy says whether they demote those too.

This is an oracle: the right answer says which answers are wrong. It is evidence about a mechanism, never a gain. The
heads come from IOI's effects alone, and three controls say what forcing by itself does: as many other heads forced onto
the same tokens, the same heads forced onto random tokens, and onto the right answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.search import result as circuits
from probe.analyses.circuits.tasks.registry import task
from probe.analyses.measures.intervals import wilson
from probe.errors import ProbeError, UsageError
from probe.heads import Head
from probe.interventions import ForceAttention
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, Steps, carry_out, config_of
from probe.saving.results import Result
from probe.tokens import ids_hash

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model
    from probe.patching.pairs import Pairs

Progress = Callable[[int, int], None]

NONE, REPAIR, RIGHT, TOKENS, HEADS = (
    "no heads", "wrong answers", "right answer", "random tokens", "random heads",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does."""

    source: str = "ioi"
    """The task whose effects show the heads."""
    target: str = "colored-objects"
    """The task that is repaired; its prompts have choices and the roles "right" and "wrong ..."."""
    source_prompts: int = 40
    prompts: int = 160
    seed: int = 0
    draws: int = 5
    least: float = 10.0
    """Percent of the gap that a head of the source moves at least."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the target, such as shots."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Repair(Result):
    """What forcing a task's heads onto the wrong answers of another does.

    heads: those that were forced, found on the source. conditions: one row for each condition and draw: condition,
    draw, heads, best (share of prompts whose right answer beats the other choices) with best_low and best_high (Wilson,
    95 %), top1 (over the vocabulary), newly_wrong and newly_right (by `best`), n.
    """

    source: str
    target: str
    heads: tuple[Head, ...]
    chance: float
    conditions: pd.DataFrame

    def to_df(self) -> pd.DataFrame:
        """One row for each condition, its draws averaged, in the order in which they ran."""
        numbers = ["best", "top1", "newly_wrong", "newly_right"]
        return self.conditions.groupby("condition", sort=False)[numbers].mean().reset_index()

    def value(self, condition: str, number: str = "best") -> float:
        """One number of a condition, over its draws."""
        return float(self.conditions.loc[self.conditions["condition"] == condition, number].mean())

    @property
    def findings(self) -> tuple[str, ...]:
        """The analysis in sentences."""
        names = " ".join(map(str, self.heads))
        return (
            f"{names}, found on {self.source} to read the wrong answer and demote it, forced onto the wrong answers of "
            f"{self.target}: {self.value(NONE):.1%} to {self.value(REPAIR):.1%} best of "
            f"{round(1 / self.chance)}, {self.value(REPAIR, 'newly_wrong'):.0f} newly wrong",
            f"controls: the right answer {self.value(RIGHT):.1%}, random tokens {self.value(TOKENS):.1%}, random heads "
            f"{self.value(HEADS):.1%}; chance {self.chance:.1%}",
            "an oracle intervention: the right answer says which answers are wrong, so this is evidence about a "
            "mechanism and no gain",
        )

    def figures(self) -> dict[str, Plot]:
        """repair: the share of right answers under each condition."""
        from probe.analyses.circuits.repair.figures import condition_figure

        return {"repair": condition_figure(self)}


def run(
    model: Model, *, settings: Settings | None = None, out: RunFolder | str | Path | None = None,
    progress: Progress | None = None,
) -> Repair:  # fmt: skip
    """The repair of one task with the mechanism of another. out: a folder to continue from and to save in. progress:
    called with (steps done, steps planned). Raises UsageError."""
    chosen = settings or Settings()
    return carry_out(
        Repair, out, lambda: run_config(model, chosen), lambda folder: _measured(model, chosen, folder, progress)
    )


def target(model: Model, settings: Settings) -> Pairs:
    """The prompts that are repaired."""
    made = task(model, settings.target, prompts=settings.prompts, seed=settings.seed, **settings.options)
    return made.pairs(model)


def run_config(model: Model, settings: Settings) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "repair", asdict(settings))


def _measured(model: Model, settings: Settings, folder: RunFolder | None, progress: Progress | None) -> Repair:
    before = 0.0 if folder is None else folder.seconds
    recorder = Recorder(model, analysis="repair", options=asdict(settings), seed=settings.seed, before=before)
    pairs = target(model, settings)
    steps = Steps(folder, 4 + 2 * settings.draws, progress)
    found = steps("heads", lambda: [str(head) for head in negative_movers(model, settings)])
    heads = [Head.parse(name) for name in found]
    if not heads:
        raise ProbeError(
            f"no head of {model.name} reads the wrong answer of {settings.source} and demotes it by "
            f"{settings.least:g} % of the gap: there is nothing to repair with"
        )
    rows = conditions(model, pairs, heads, draws=settings.draws, seed=settings.seed, steps=steps)
    assert pairs.choices is not None
    return Repair(
        manifest=recorder.manifest(prompts=[ids_hash(row) for row in pairs.clean]),
        source=settings.source,
        target=settings.target,
        heads=tuple(heads),
        chance=1 / pairs.choices.shape[1],
        conditions=pd.DataFrame(rows),
    )


def negative_movers(model: Model, settings: Settings) -> list[Head]:
    """The heads that support the source's answer by reading a wrong one, by path patching to the logits."""
    search = circuits.Settings(
        task=settings.source, prompts=settings.source_prompts, seed=settings.seed, stages=1, tests=False
    )
    rows = circuits.run(model, settings=search).stage("logits")
    rows = rows[(rows["role"] == "negative mover") & (rows["percent"] >= settings.least) & rows["kept"]]
    return [Head(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model answers at END: `best` [prompts] is the place of its choice among the choices, `top` the id."""

    best: Tensor
    top: Tensor


@torch.no_grad()
def answers(
    model: Model, pairs: Pairs, *, heads: Sequence[Head] = (), keys: Tensor | None = None, batch: int = 16
) -> Answers:
    """The model's answers, with END rows of `heads` forced onto the columns `keys` [prompts, keys] in equal parts."""
    if pairs.choices is None:
        raise UsageError("a repair needs prompts with choices, the right one first")
    best, top = torch.empty(len(pairs), dtype=torch.int64), torch.empty(len(pairs), dtype=torch.int64)
    # columns count the padding of the whole set, of which a batch drops what it does not need
    width = pairs.clean.shape[1]
    for rows, part in pairs.batches(batch):
        forced = []
        if heads:
            assert keys is not None
            columns = keys[rows] - (width - part.clean.shape[1])
            forced = [ForceAttention(heads, queries=[[part.end]] * len(part), keys=columns.tolist())]
        with model.intervene(*forced):
            logits = model.logits(part.clean, padding=part.padding, logits_to_keep=1)[:, -1].cpu()
        assert part.choices is not None
        best[rows] = logits.gather(1, part.choices).argmax(1)
        top[rows] = logits.argmax(1)
    return Answers(best, top)


def wrong_columns(pairs: Pairs) -> Tensor:
    """Columns of the wrong answers in the prompts, [prompts, wrong answers]: of the roles called "wrong ..."."""
    names = [name for name in pairs.roles if name.startswith("wrong")]
    if not names or "right" not in pairs.roles:
        raise UsageError(f'a repair needs the roles "right" and "wrong ...", got {list(pairs.roles)}')
    return torch.stack([pairs.roles[name] for name in names], 1)


def random_columns(pairs: Pairs, count: int, *, seed: int) -> Tensor:
    """Columns of `count` different tokens of each prompt, [prompts, count], none of them an answer or END."""
    taken = torch.cat([wrong_columns(pairs), pairs.roles["right"][:, None]], 1).tolist()
    draw = random.Random(seed)
    found = []
    for row in range(len(pairs)):
        start = 0 if pairs.padding is None else int(pairs.padding[row].int().argmax())
        free = sorted(set(range(start, pairs.end)) - set(taken[row]))
        found.append(sorted(draw.sample(free, count)))
    return torch.tensor(found)


def conditions(
    model: Model, pairs: Pairs, heads: Sequence[Head], *, draws: int = 5, seed: int = 0, steps: Steps | None = None
) -> list[dict[str, Any]]:
    """One row for each condition and draw; `Repair` says what is in it."""
    step = steps or Steps(None, 3 + 2 * draws)
    wrong, right = wrong_columns(pairs), pairs.roles["right"][:, None]
    others = [head for head in model.heads() if head not in set(heads)]
    draw = random.Random(seed)
    plan: list[tuple[str, int, Sequence[Head], Tensor | None]] = [
        (NONE, 0, (), None),
        (REPAIR, 0, heads, wrong),
        (RIGHT, 0, heads, right),
    ]
    plan += [(TOKENS, each, heads, random_columns(pairs, wrong.shape[1], seed=seed + each)) for each in range(draws)]
    plan += [(HEADS, each, draw.sample(others, len(heads)), wrong) for each in range(draws)]

    def run(forced: Sequence[Head], columns: Tensor | None) -> dict[str, list[int]]:
        given = answers(model, pairs, heads=forced, keys=columns)
        return {"best": given.best.tolist(), "top": given.top.tolist()}

    before: Answers | None = None
    rows = []
    for name, number, forced, columns in plan:
        kept = step(f"{name} {number}", lambda forced=forced, columns=columns: run(forced, columns))
        given = Answers(torch.tensor(kept["best"]), torch.tensor(kept["top"]))
        before = given if before is None else before
        rows.append(
            {"condition": name, "draw": number, "heads": " ".join(map(str, forced))}
            | compared(given, before, pairs.good)
        )
    return rows


def compared(found: Answers, before: Answers, good: Tensor) -> dict[str, float]:
    """Accuracy of `found` with 95 % Wilson intervals, and how many answers turned wrong or right since `before`."""
    right, was = found.best == 0, before.best == 0
    low, high = wilson(int(right.sum()), len(right))
    return {
        "best": float(right.double().mean()),
        "best_low": low,
        "best_high": high,
        "top1": float((found.top == good).double().mean()),
        "newly_wrong": int((was & ~right).sum()),
        "newly_right": int((right & ~was).sum()),
        "n": len(right),
    }
