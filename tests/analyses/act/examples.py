"""Synthetic results of `probe intervene act`: what would make each claim hold, fail, and stay open."""

from __future__ import annotations

import pandas as pd
import torch

from probe.analyses.act.conditions import ALL, BEST, BEST_BIAS, BIAS, NONE, RANDOM, WORST
from probe.analyses.act.result import Calibration
from probe.heads import Head
from probe.saving.manifest import manifest_of

LAYERS, HEADS, EXAMPLES_IN_A_SPLIT = (3, 4, 7), 4, 12
OTHERS = {NONE: 0.9, BEST_BIAS: 0.3, WORST: 1.4, ALL: 0.8}


def calibration(*, best: float, bias: float, random: float, spread: float = 0.0, effect: list[float]) -> Calibration:
    """A result with these mean losses; the best heads' losses lie `spread` above and below, example by example.

    effect: the exact effect of the heads, in the order of their gradient.
    """
    means = OTHERS | {BEST: best, BIAS: bias, RANDOM: random}
    each = [
        {
            "condition": condition,
            "draw": draw,
            "split": split,
            "example": example,
            "loss": mean + (spread if example % 2 else -spread) * (condition == BEST),
        }
        for condition, mean in means.items()
        for draw in range(2 if condition == RANDOM else 1)
        for split in ("calibration", "test")
        for example in range(EXAMPLES_IN_A_SPLIT)
    ]
    losses = pd.DataFrame(each)
    groups = losses.groupby(["condition", "draw", "split"], sort=False)["loss"]
    conditions = pd.DataFrame({"nll": groups.mean()}).reset_index()
    conditions = conditions.assign(accuracy=0.75, nll_low=0.1, nll_high=1.5, auc=0.8, n=EXAMPLES_IN_A_SPLIT)
    heads = [Head(layer, head) for layer in LAYERS for head in range(HEADS)]
    gradient = [0.01 * place - 0.05 for place in range(len(heads))]
    return Calibration(
        manifest=manifest_of(None, analysis="intervene act", options={}),
        conditions=conditions,
        losses=losses,
        heads=pd.DataFrame(
            {
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                "name": [str(head) for head in heads],
                "gradient": gradient,
                "effect": effect,
            }
        ),
        chosen=(heads[0], heads[1]),
        variant="release",
        k=2,
        labels=(" negative", " positive"),
        bias=torch.tensor([0.0, -1.5], dtype=torch.float64),
    )


def results() -> list[Calibration]:
    """Results that hold every claim, refute every claim, and decide none: by spread, and by too few heads run alone."""
    count = len(LAYERS) * HEADS
    ranked = [0.01 * place for place in range(count)]
    mixed = [ranked[place] if place % 3 else ranked[-1 - place] for place in range(count)]
    return [
        calibration(best=0.2, bias=0.5, random=0.85, effect=ranked),
        calibration(best=1.1, bias=0.5, random=0.85, effect=ranked[::-1]),
        calibration(best=0.5, bias=0.5, random=0.52, spread=0.4, effect=mixed),
        calibration(best=0.2, bias=0.5, random=0.85, effect=[*ranked[:2], *[float("nan")] * (count - 2)]),
        calibration(best=0.2, bias=0.5, random=0.85, effect=[float("nan")] * count),
    ]


EXAMPLES = {"intervene act": results}
