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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.intervals import wilson
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions import ForceAttention

if TYPE_CHECKING:
    from probe.models import Model
    from probe.pairs import Pairs

NONE, REPAIR, RIGHT, TOKENS, HEADS = (
    "no heads", "wrong answers", "right answer", "random tokens", "random heads",
)  # fmt: skip


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
    model: Model,
    pairs: Pairs,
    heads: Sequence[Head],
    *,
    candidates: Sequence[Head],
    draws: int = 5,
    seed: int = 0,
) -> list[dict[str, object]]:
    """One row for each condition and draw: accuracy among the choices and over the vocabulary, newly wrong and right.

    candidates: the heads that random ones are drawn from; those that are repaired are left out.
    """
    wrong, right = wrong_columns(pairs), pairs.roles["right"][:, None]
    others = [head for head in candidates if head not in set(heads)]
    draw = random.Random(seed)
    plan: list[tuple[str, int, Sequence[Head], Tensor | None]] = [
        (NONE, 0, (), None),
        (REPAIR, 0, heads, wrong),
        (RIGHT, 0, heads, right),
    ]
    plan += [(TOKENS, each, heads, random_columns(pairs, wrong.shape[1], seed=seed + each)) for each in range(draws)]
    plan += [(HEADS, each, draw.sample(others, len(heads)), wrong) for each in range(draws)]
    before: Answers | None = None
    rows = []
    for name, number, forced, columns in plan:
        found = answers(model, pairs, heads=forced, keys=columns)
        before = found if before is None else before
        rows.append(
            {"condition": name, "draw": number, "heads": " ".join(map(str, forced))}
            | compared(found, before, pairs.good)
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


def mean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each condition, its draws averaged, in the order in which they ran."""
    numbers = ["best", "top1", "newly_wrong", "newly_right"]
    return table.groupby("condition", sort=False)[numbers].mean().reset_index()
