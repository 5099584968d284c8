"""Conditions of a validation: which heads are pruned, what they are compared with, and what a pruned head outputs.

top k:          the k heads with the highest scores.
random k:       k heads drawn from outside the top of the ranking, anew for every sample.
same layers k:  from each layer the number of heads that the top k has there, drawn from outside the top of the ranking,
                anew for every sample. This control tells an effect of the heads from one of their layers. A layer
                without enough other heads gives those that it has.

fill "zero":    a pruned head outputs zero, which removes it.
fill "uniform": a pruned head attends evenly to every position that it sees. The released code of Wu et al. prunes in
                this way (it sets the scores to zero before the softmax), so this is the official mask. It does not
                remove the head: the head adds the mean of the values to the residual stream.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from probe.errors import UsageError
from probe.heads import Head

Fill = Literal["zero", "uniform"]
Group = Literal["none", "top", "random", "same layers"]


@dataclass(frozen=True)
class Condition:
    """A way to prune: which heads, how many of them, and what a pruned head outputs."""

    group: Group
    k: int
    fill: Fill | None

    def __str__(self) -> str:
        return "none" if self.group == "none" else f"{self.group} {self.k} {self.fill}"


@dataclass(frozen=True)
class Conditions:
    """All conditions of a validation over a ranking of heads, best first; `draw` picks the heads of one sample."""

    ranked: tuple[Head, ...]
    ks: tuple[int, ...]
    fills: tuple[Fill, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise UsageError(f"ks: expected different positive numbers of heads, got {list(self.ks)}")
        if not self.fills or not set(self.fills) <= {"zero", "uniform"}:
            raise UsageError(f"--fill: expected zero or uniform, got {list(self.fills)}")
        if 2 * max(self.ks) > len(self.ranked):
            raise UsageError(
                f"ks: pruning {max(self.ks)} heads needs the same number of others for the random control, and the "
                f"model has {len(self.ranked)} heads; give smaller ks"
            )

    @property
    def all(self) -> tuple[Condition, ...]:
        """Return the unpruned baseline, then every group, number and fill."""
        groups: tuple[Group, ...] = ("top", "random", "same layers")
        pruned = (Condition(group, k, fill) for fill, group, k in product(self.fills, groups, self.ks))
        return (Condition("none", 0, None), *pruned)

    def draw(self, sample: str) -> dict[Condition, tuple[Head, ...]]:
        """Return the heads that each condition prunes in one sample; both fills prune the same heads."""
        excluded = set(self.ranked[: max(self.ks)])
        others = sorted(head for head in self.ranked if head not in excluded)
        drawn: dict[tuple[Group, int], tuple[Head, ...]] = {("none", 0): ()}
        for k in self.ks:
            top = self.ranked[:k]
            rng = random.Random(f"{self.seed}/{sample}/{k}")
            drawn["top", k] = top
            drawn["random", k] = tuple(sorted(rng.sample(others, k)))
            drawn["same layers", k] = _same_layers(top, others, rng)
        return {condition: drawn[condition.group, condition.k] for condition in self.all}


def _same_layers(top: Sequence[Head], others: Sequence[Head], rng: random.Random) -> tuple[Head, ...]:
    chosen: list[Head] = []
    for layer, wanted in sorted(Counter(head.layer for head in top).items()):
        available = [head for head in others if head.layer == layer]
        chosen += rng.sample(available, min(wanted, len(available)))
    return tuple(sorted(chosen))
