"""Synthetic results of `probe sinks`: what would make each claim hold, fail, and stay open."""

from __future__ import annotations

import pandas as pd
import torch

from probe.analyses.sinks.passes import CONTROL, MEAN, NONE, ONLY, RANDOM, ZERO
from probe.analyses.sinks.result import Sinks
from probe.saving.manifest import manifest_of

TOKENS, LAYERS, HEADS = 20, 3, 4
COLUMNS = ["text", "layer", "condition", "dim", "value", "loss", "rise", "attention"]


def sinks(
    *, first: list[float], later: float, ratio: list[float], zero: list[float], mean: list[float],
    kept: list[float], massive: bool = True,
) -> Sinks:  # fmt: skip
    """A result with a text for each entry of the lists.

    first, later: column mean of the first token in half of the heads of each text, and of the later tokens in all.
    ratio: value norm ratio. zero, mean: rise of the loss under these conditions. kept: attention with the dimension at
    zero, beside 0.5 without a change.
    """
    texts = len(first)
    means = torch.full((texts, LAYERS, HEADS, TOKENS), later)
    means[..., 0] = 0.01
    means[:, :, :2, 0] = torch.tensor(first)[:, None, None]
    names = [f"text {n}" for n in range(texts)]
    rows = []
    for n, name in enumerate(names):
        values = {NONE: (0.0, 0.5), ZERO: (zero[n], kept[n]), MEAN: (mean[n], 0.5), CONTROL: (0.01 * n, 0.5)}
        values |= {RANDOM: (0.0, 0.5), ONLY: (0.1, kept[n])}
        rows += [[name, 1, each, 5, 0.0, 3.0 + rise, rise, seen] for each, (rise, seen) in values.items()]
    places = tuple((layer, block) for layer in range(LAYERS) for block in ("attention", "mlp"))
    stream = torch.tensor([0.0, 1.0, 2.0, 900.0, 905.0, 10.0]).expand(texts, -1)[..., None]
    entry = [[name, 1, "mlp", 0, "The", 5, 900.0, 1200.0] for name in names]
    return Sinks(
        manifest=manifest_of(None, analysis="sinks", options={}),
        column_means=list(means),
        first_mass=means[..., 0],
        value_ratio=torch.tensor(ratio)[:, None, None].expand(texts, LAYERS, HEADS).contiguous(),
        strings=[["The", *(f" word{n}" for n in range(TOKENS - 1))] for _ in names],
        texts=pd.DataFrame({"name": names, "tokens": [TOKENS] * texts, "loss": [3.0] * texts}),
        places=places,
        dims=(5,) if massive else (),
        first=stream if massive else stream[..., :0],
        peaks=torch.tensor([905.0, 0.8]).expand(texts, len(places), 2).contiguous(),
        massive=pd.DataFrame(
            entry if massive else [], columns=["text", "layer", "block", "position", "token", "dim", "value", "ratio"]
        ),
        phi=[torch.ones(LAYERS - 1, TOKENS) for _ in names] if massive else [],
        causes=pd.DataFrame(rows if massive else [], columns=COLUMNS),
        windows=(None,) * LAYERS,
        rule="absolute",
        threshold=0.1,
        min_rows=4,
        epsilon=0.3,
        n_kv_heads=2,
    )


def results() -> list[Sinks]:
    """Results that hold every claim, refute every claim, and decide none: by spread, or by one text alone."""
    none = [0.0, 0.0, 0.0, 0.0]
    return [
        sinks(
            first=[0.9, 0.8, 0.7, 0.9], later=0.05, ratio=[0.2, 0.3, 0.2, 0.3], zero=[8.0, 9.0, 8.5, 9.5],
            mean=[0.01, 0.0, -0.01, 0.02], kept=[0.1, 0.05, 0.1, 0.08],
        ),
        sinks(
            first=[0.2] * 4, later=0.4, ratio=[1.5, 1.6, 1.4, 1.5], zero=[-0.5, -0.4, -0.6, -0.5],
            mean=[2.0, 2.1, 1.9, 2.2], kept=[0.4, 0.41, 0.39, 0.42],
        ),
        # heads that count in the sink rate, but whose first value is large: the second of these has none that counts
        sinks(first=[0.5] * 4, later=0.05, ratio=[1.5, 1.6, 1.4, 1.5], zero=none, mean=none, kept=[0.4] * 4),
        sinks(
            first=[0.9, 0.1, 0.9, 0.1], later=0.31, ratio=[0.1, 3.0, 0.2, 2.0], zero=[8.0, -8.0, 7.0, -6.5],
            mean=[1.0, -1.0, 0.9, -0.8], kept=[0.0, 0.5, 0.02, 0.48],
        ),
        sinks(first=[0.9], later=0.05, ratio=[0.2], zero=[8.0], mean=[0.0], kept=[0.1]),
        sinks(first=[0.9] * 4, later=0.05, ratio=[0.2] * 4, zero=none, mean=none, kept=none, massive=False),
    ]  # fmt: skip


EXAMPLES = {"sinks": results}
