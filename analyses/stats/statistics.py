"""The attention statistics that can be measured, and the one pass over a text that measures them.

With p_ij the weight that query i gives to key j, s_ij the scaled score behind it and W the window:

    entropy            -sum_j p_ij log p_ij             nats    0 for one key, log n for n keys alike
    distance            sum_j p_ij (i - j)              tokens
    windowed-distance   sum_j p_ij min(i - j, W)        tokens
    top                 max_j p_ij                      share
    mass S              sum of p_ij over j in the set S share   "mass first": the first token
    lse                 log sum_j exp s_ij              nats    the logarithm of the softmax's denominator

The engine computes all of them inside attention (`probe.kernels.contract`), so memory grows with the tokens and not
with their square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probe.analyses.stats.settings import FIRST, Settings
from probe.models import Model
from probe.tokens import Tokens


@dataclass(frozen=True)
class Statistic:
    """A statistic of a query: its name, its name in a sentence, the unit of its values, what a higher value means."""

    name: str
    words: str
    unit: str
    sign: str


ENTROPY = Statistic("entropy", "attention entropy", "nats", "higher: the attention is spread over more keys")
DISTANCE = Statistic("distance", "attention distance", "tokens", "higher: the attention goes further back")
WINDOWED = Statistic(
    "windowed-distance", "windowed attention distance", "tokens", "higher: less attention stays within the window"
)
TOP = Statistic("top", "largest weight of a query", "share", "higher: one key gets more of the attention")
LSE = Statistic("lse", "log-sum-exp of the scores", "nats", "higher: the scores of the keys are larger")
KNOWN = {each.name: each for each in (ENTROPY, DISTANCE, WINDOWED, TOP, LSE)}


def mass(keys: str) -> Statistic:
    """Return the statistic of the share of attention on a named key set."""
    where = "the first token" if keys == FIRST else keys
    return Statistic(f"mass {keys}", f"attention to {where}", "share", f"higher: {where} gets more of the attention")


def chosen(settings: Settings) -> tuple[Statistic, ...]:
    """Return the statistics that the settings ask for; mass is one statistic for each key set."""
    found: dict[str, Statistic] = {}
    for name in settings.stat:
        several = map(mass, settings.key_sets()) if name == "mass" else [KNOWN[name]]
        found |= {statistic.name: statistic for statistic in several}
    return tuple(found.values())


def measured(model: Model, tokens: Tokens, settings: Settings) -> Tensor:
    """Return every chosen statistic at every query of a text: [statistics, layers, heads, queries] float32."""
    length = len(tokens)
    sets = {name: [at for at in positions if at < length] for name, positions in settings.key_sets().items()}
    _, stats = model.run_with_stats(
        tokens, stats=[name.replace("-", "_") for name in settings.stat], sets=sets, window=settings.window,
        logits_to_keep=1,
    )  # fmt: skip
    values = {name.replace("_", "-"): value for name, value in stats.tensors().items()}
    if stats.top_weight is not None:
        values["top"] = stats.top_weight[..., 0]
    if stats.mass is not None:
        values |= {f"mass {name}": stats.mass[..., index] for index, name in enumerate(stats.sets)}
    return torch.stack([values[statistic.name][:, 0] for statistic in chosen(settings)])
