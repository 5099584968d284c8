"""The knock-outs that test a circuit: which heads each leaves in place, and what its logit difference is of.

`knockout` defines faithfulness, completeness and minimality.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from probe.heads import Head

TESTS = ("test", "what", "heads", "ld", "ld_error", "value")


@dataclass(frozen=True)
class Trial:
    """One row of the table of knock-outs.

    test, what: names of the row. count: the heads that the row is about. name, heads: the knock-out and the heads that
    it leaves in place. whole: for completeness, the whole model without the same heads.
    """

    test: str
    what: str
    count: int
    name: str
    heads: Sequence[Head]
    whole: tuple[str, Sequence[Head]] | None = None

    @property
    def knock_outs(self) -> dict[str, Sequence[Head]]:
        """Return the heads that each knock-out of the row leaves in place, by its name."""
        return {self.name: self.heads} | (dict([self.whole]) if self.whole else {})


def planned(kept: Mapping[str, Sequence[Head]], everything: Sequence[Head], *, draws: int, seed: int) -> list[Trial]:
    """Return the trials of a circuit, given by stage, beside `draws` random circuits of the same size."""
    draw = random.Random(seed)
    circuit = sorted({head for heads in kept.values() for head in heads})
    found = [
        Trial("faithfulness", "whole model", len(everything), "whole", everything),
        Trial("faithfulness", "nothing", 0, "nothing", ()),
        Trial("faithfulness", "circuit", len(circuit), "circuit", circuit),
    ]
    for number in range(draws):
        other = draw.sample(everything, len(circuit))
        found.append(Trial("faithfulness", "random", len(other), f"random {number}", other))
    subsets = {f"without {stage}": heads for stage, heads in kept.items() if heads}
    if circuit:
        for number in range(draws):
            subsets[f"without random {number}"] = draw.sample(circuit, max(1, len(circuit) // 2))
    for what, gone in subsets.items():
        less, model_less = ([head for head in heads if head not in gone] for heads in (circuit, everything))
        found.append(
            Trial("completeness", what, len(gone), f"circuit {what}", less, whole=(f"model {what}", model_less))
        )
    for head in kept["logits"]:
        rest = [each for each in circuit if each != head]
        found.append(Trial("minimality", str(head), 1, f"circuit without {head}", rest))
    return found


def scored(trials: Sequence[Trial], scores: Mapping[str, Sequence[float]]) -> tuple[pd.DataFrame, Tensor]:
    """Return the table of the trials and their logit differences [trials, prompts], from those of each knock-out.

    value is a share of span = F(whole model) - F(nothing): F - F(nothing) for faithfulness, |F(circuit - K) - F(whole
    model - K)| for completeness, and F(circuit) - F for minimality.
    """
    found = {name: torch.tensor(scores[name]).double() for trial in trials for name in trial.knock_outs}
    whole, nothing, own = (float(found[name].mean()) for name in ("whole", "nothing", "circuit"))
    span = whole - nothing or nan  # equal prompts leave nothing to divide by
    rows: list[dict[str, Any]] = []
    for trial in trials:
        each = found[trial.name]
        if trial.test == "faithfulness":
            value = (float(each.mean()) - nothing) / span
        elif trial.whole is not None:
            value = abs(float(each.mean() - found[trial.whole[0]].mean())) / abs(span)
        else:
            value = (own - float(each.mean())) / span
        rows.append(
            {"test": trial.test, "what": trial.what, "heads": trial.count, "ld": float(each.mean())}
            | {"ld_error": float(each.std() / len(each) ** 0.5), "value": value}
        )
    return pd.DataFrame(rows, columns=list(TESTS)), torch.stack([found[trial.name] for trial in trials])
