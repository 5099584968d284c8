"""Answers of a model with the END rows of heads forced onto chosen tokens, and the conditions that are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.analyses.measures.intervals import wilson
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions import ForceAttention

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs

NONE, REPAIR, RIGHT, TOKENS, HEADS = (
    "no heads", "wrong answers", "right answer", "random tokens", "random heads",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Answers:
    """The model's answers at END: `best` [prompts] is the place of its choice among the choices, `top` the id."""

    best: Tensor
    top: Tensor


@dataclass(frozen=True)
class Condition:
    """One draw of a condition: the heads whose END rows are forced."""

    name: str
    draw: int
    heads: tuple[Head, ...]

    def columns(self, pairs: Pairs, *, seed: int) -> Tensor | None:
        """Return the columns that the rows are forced onto, [prompts, keys]; None where no row is forced."""
        if self.name == NONE:
            return None
        if self.name == RIGHT:
            return pairs.roles["right"][:, None]
        wrong = wrong_columns(pairs)
        return random_columns(pairs, wrong.shape[1], seed=seed + self.draw) if self.name == TOKENS else wrong


def conditions(model: Model, heads: Sequence[Head], *, draws: int, seed: int) -> list[Condition]:
    """Return the conditions in the order in which they run; the first leaves the model as it is."""
    others = [head for head in model.heads() if head not in set(heads)]
    draw, own = random.Random(seed), tuple(heads)
    found = [Condition(NONE, 0, ()), Condition(REPAIR, 0, own), Condition(RIGHT, 0, own)]
    found += [Condition(TOKENS, each, own) for each in range(draws)]
    return found + [Condition(HEADS, each, tuple(draw.sample(others, len(own)))) for each in range(draws)]


@torch.no_grad()
def answers(
    model: Model, pairs: Pairs, *, heads: Sequence[Head] = (), keys: Tensor | None = None, batch: int = 16
) -> Answers:
    """Return the answers with END rows of `heads` forced onto the columns `keys` [prompts, keys] in equal parts."""
    if pairs.choices is None:
        raise UsageError("a repair needs prompts with choices, the right one first")
    best, top = torch.empty(2, len(pairs), dtype=torch.int64)
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
    """Return the columns of the wrong answers in the prompts, [prompts, wrong answers]: of the roles "wrong ..."."""
    names = [name for name in pairs.roles if name.startswith("wrong")]
    if not names or "right" not in pairs.roles:
        raise UsageError(f'a repair needs the roles "right" and "wrong ...", got {list(pairs.roles)}')
    return torch.stack([pairs.roles[name] for name in names], 1)


def random_columns(pairs: Pairs, count: int, *, seed: int) -> Tensor:
    """Return the columns of `count` different tokens of each prompt, [prompts, count], none an answer or END."""
    taken = torch.cat([wrong_columns(pairs), pairs.roles["right"][:, None]], 1).tolist()
    draw = random.Random(seed)
    found = []
    for row in range(len(pairs)):
        start = 0 if pairs.padding is None else int(pairs.padding[row].int().argmax())
        free = sorted(set(range(start, pairs.end)) - set(taken[row]))
        found.append(sorted(draw.sample(free, count)))
    return torch.tensor(found)


def compared(found: Answers, before: Answers, good: Tensor) -> dict[str, float]:
    """Return accuracy with 95 % Wilson intervals, and how many answers turned wrong or right since `before`."""
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
