"""Attention sinks: the tokens that heads look at for no reason, the activations that make them, and what they cost.

Measured on a few texts, each in one pass without a map:

    first-token mass   mean over queries i >= 1 of p_i0                      (StreamingLLM, Xiao et al. 2023)
    sink rate          share of heads whose column mean c_k exceeds 0.3      (Gu et al. 2024)
    later sinks        tokens k > 0 that a rule calls sinks of a head        (sink_rules; ACT, Yu et al. 2024)
    value norm ratio   |v_0| / median |v_j|: small means that attending there does nothing
    massive            |x| > 100 and 1000 times the layer's median in the residual stream     (Sun et al. 2024)

The claim that a massive dimension makes the sink is tested by taking it away: on the first token, after the layer that
writes it, the dimension is set to zero, and to its mean over the other texts; a neighbouring dimension and random ones
are set to zero for control, and so are all dimensions but this one. Sun et al. predict ruin for zero, nothing for the
mean; whether the attention stays where it was is measured too.

We differ from Gu et al. in the length (their T is 64; whole texts here), and from Sun et al. in taking the mean of
other texts only, so that a text is never repaired with its own value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean
from probe.analyses.sinks import passes as sink_runs
from probe.analyses.sinks.massive_activations import LEAST, steps
from probe.analyses.sinks.passes import CONTROL, MEAN, NONE, ONLY, RANDOM, ZERO
from probe.analyses.sinks.settings import Settings, run_config
from probe.analyses.sinks.statistics import later_per_head, row_counts, share_of_heads, sink_rate
from probe.engine.residual import ResidualStream
from probe.figures.style import decimal
from probe.interventions.sink_rules import THRESHOLDS, Rule, sinks
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, carry_out
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model

Progress = Callable[[int, int], None]
WRITES = 0.1
"""A sub-block is said to write or erase a dimension when it changes it by this share of its largest value."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sinks(Result):
    """What was found on each text; axes: texts, layers, heads, keys; places are sub-blocks in the order they write.

    column_means: one [layers, heads, keys] per text. first_mass, value_ratio: [texts, layers, heads].
    strings: the tokens of each text. texts: one row per text: name, tokens, loss (nats per token).
    places: (layer, block). dims: the dimensions massive on a first token, largest first. first: [texts, places, dims],
    the first token's stream there. peaks: [texts, places, 2], largest and median |x| over tokens and dimensions.
    massive: one row per massive activation: text, layer, block, position, token, dim, value, ratio.
    phi: one [layers - 1, keys] per text, entering the layers from 1 on; empty without massive dimensions.
    causes: one row per text and condition: condition, dim, layer it was set after, value, loss, rise, and the attention
    to the first token in all layers after that one (attention).
    windows: keys that a query sees, by layer; None for all before it.
    rule, threshold, min_rows: what a later sink is. epsilon: of the sink rate.
    """

    column_means: list[Tensor]
    first_mass: Tensor
    value_ratio: Tensor
    strings: list[list[str]]
    texts: pd.DataFrame
    places: tuple[tuple[int, str], ...]
    dims: tuple[int, ...]
    first: Tensor
    peaks: Tensor
    massive: pd.DataFrame
    phi: list[Tensor]
    causes: pd.DataFrame
    windows: tuple[int | None, ...]
    rule: str
    threshold: float
    min_rows: int
    epsilon: float
    n_kv_heads: int

    def found(self, text: int, *, rule: Rule | None = None, min_rows: int | None = None) -> Tensor:
        """Which tokens of a text are sinks of which heads, by this rule: [layers, heads, keys] bool."""
        chosen: Any = rule or self.rule
        means = self.column_means[text]
        rows = row_counts(means.shape[-1])
        level = self.threshold if chosen == self.rule else THRESHOLDS[chosen]
        least = self.min_rows if min_rows is None else min_rows
        return torch.stack(
            [
                sinks(of_layer, rows, rule=chosen, threshold=level, min_rows=least, window=window)
                for of_layer, window in zip(means, self.windows, strict=True)
            ]
        )

    def sink_rate(self) -> Tensor:
        """Share of heads whose column mean of the first token exceeds epsilon: [texts]."""
        return torch.stack([sink_rate(means, epsilon=self.epsilon)[0] for means in self.column_means])

    def later(self) -> Tensor:
        """Sinks beside the first token: [texts, layers, heads] float64 counts."""
        return torch.stack([later_per_head(self.found(text)) for text in range(len(self.texts))]).double()

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: first_mass, low, high, value_ratio, later (sinks per head), largest and median |x|."""
        mass = self.first_mass.mean(-1)
        low, high = bootstrap_mean(mass, seed=self.manifest.seed)
        ends = {layer: index for index, (layer, _) in enumerate(self.places)}
        peaks = self.peaks.mean(0)[[ends[layer] for layer in range(mass.shape[1])]]
        return pd.DataFrame(
            {
                "layer": range(mass.shape[1]),
                "first_mass": mass.mean(0).tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "value_ratio": self.value_ratio.mean((0, 2)).tolist(),
                "later": self.later().mean((0, 2)).tolist(),
                "largest": peaks[:, 0].tolist(),
                "median": peaks[:, 1].tolist(),
            }
        )

    def tokens(self) -> pd.DataFrame:
        """Tokens that are a sink of any head, most first: text, position, token, initial, share, layers."""
        rows = []
        for text, name in enumerate(self.texts["name"]):
            share, layers = share_of_heads(self.found(text))
            for position in share.nonzero().flatten().tolist():
                token = self.strings[text][position]
                rows.append([name, position, token, position == 0, float(share[position]), int(layers[position])])
        table = pd.DataFrame(rows, columns=["text", "position", "token", "initial", "share", "layers"])
        return table.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def rules(self) -> pd.DataFrame:
        """Later sinks per head by rule and min_rows, mean over heads, least and most over the texts."""
        rows = []
        for rule in THRESHOLDS:
            for least in (1, 16, 64):
                counts = [
                    float(later_per_head(self.found(text, rule=rule, min_rows=least)).double().mean())
                    for text in range(len(self.texts))
                ]
                rows.append([rule, least, min(counts), max(counts)])
        return pd.DataFrame(rows, columns=["rule", "min_rows", "least", "most"])

    def writes(self) -> pd.DataFrame:
        """Who writes and erases the massive dimensions on first tokens: dim, layer, block, change, after (means).

        The sub-blocks that change a dimension by a tenth of its largest value or by more than 100.
        """
        rows = []
        mean = self.first.mean(0)
        for index, dim in enumerate(self.dims):
            changes = steps(mean[:, index])
            bar = min(WRITES * float(mean[:, index].abs().max()), LEAST)
            for place in (changes.abs() >= bar).nonzero().flatten().tolist():
                layer, block = self.places[place]
                rows.append([dim, layer, block, float(changes[place]), float(mean[place, index])])
        return pd.DataFrame(rows, columns=["dim", "layer", "block", "change", "after"])

    def condition(self, name: str, column: str = "loss") -> float:
        """Mean over the texts of one condition's column; NaN where the condition was not run."""
        return float(self.causes.loc[self.causes["condition"] == name, column].mean())

    @property
    def findings(self) -> tuple[str, ...]:
        """The analysis in sentences."""
        rate = float(self.sink_rate().mean())
        lines = [
            f"{decimal(float(self.first_mass.mean()))} of the attention goes to the first token; "
            f"it is a sink (column mean above {decimal(self.epsilon, digits=1)}) of {rate:.0%} of the heads"
        ]
        if not self.dims:
            lines.append("no activation of a first token is massive, so nothing was set in the stream")
            return tuple(lines)
        row = self.causes.iloc[0]
        dim, layer = self.dims[0], int(row["layer"])
        largest = float(self.first[:, :, 0].abs().max())
        mean = f"set to its mean over other texts, to {self.condition(MEAN):.2f}"
        if len(self.texts) == 1:
            mean = "setting it to its mean over other texts needs several texts"
        lines += [
            f"dimension {dim} of the first token reaches {largest:,.0f}; "
            f"massive on first tokens: {', '.join(map(str, self.dims))}",
            f"set to zero after layer {layer}, the loss goes from {self.condition(NONE):.2f} to "
            f"{self.condition(ZERO):.2f}; {mean}; "
            f"control dimension zeroed {self.condition(CONTROL):.2f}, random ones {self.condition(RANDOM):.2f}, "
            f"all but this one {self.condition(ONLY):.2f}",
            f"attention to the first token after layer {layer}: {decimal(self.condition(NONE, 'attention'))}, with the "
            f"dimension zeroed {decimal(self.condition(ZERO, 'attention'))}",
        ]
        return tuple(lines)

    def to_df(self) -> pd.DataFrame:
        """One row per head, strongest sink first: layer, head, kv_group, first_mass with bounds, later, value_ratio."""
        low, high = bootstrap_mean(self.first_mass, seed=self.manifest.seed)
        columns = {
            "first_mass": self.first_mass.mean(0),
            "first_mass_low": low,
            "first_mass_high": high,
            "column_mean": torch.stack([means[..., 0] for means in self.column_means]).mean(0),
            "later_sinks": self.later().mean(0),
            "value_ratio": self.value_ratio.mean(0),
        }
        return head_table(columns, n_kv_heads=self.n_kv_heads)

    def figures(self) -> dict[str, Plot]:
        """sinks: first-token mass of every head. profile: by layer. tokens: sinks in their text. causes: the test."""
        from probe.analyses.sinks.figures import cause_figure, mass_map, profile, token_figure

        drawn = {"sinks": mass_map(self), "profile": profile(self), "tokens": token_figure(self)}
        return drawn | ({"causes": cause_figure(self)} if self.dims else {})


@torch.no_grad()
def run(
    model: Model, *, settings: Settings | None = None, out: RunFolder | str | Path | None = None,
    progress: Progress | None = None,
) -> Sinks:  # fmt: skip
    """The sinks of a model: attention, massive activations and the intervention on them.

    settings: texts, rule and thresholds. out: a folder to continue from and to save in. progress: called with (passes
    done, passes planned). Raises UsageError for a text of fewer than two tokens or one beyond the context.
    """
    chosen = settings or Settings()
    return carry_out(
        Sinks, out, lambda: run_config(model, chosen), lambda folder: _measured(model, chosen, folder, progress)
    )


def _measured(model: Model, settings: Settings, folder: RunFolder | None, progress: Progress | None) -> Sinks:
    before = 0.0 if folder is None else folder.seconds
    recorder = Recorder(model, analysis="sinks", options=settings.config(), seed=settings.seed, before=before)
    prompts = settings.prompts(model)
    stream = ResidualStream(model.hf)
    done: list[dict[str, Any]] = [] if folder is None else folder.samples()
    total = 2 * len(prompts)

    def keep(sample: dict[str, Any]) -> None:
        if folder is not None:
            folder.append(sample)
        done.append(sample)
        if progress is not None:
            progress(len(done), total)

    for tokens in prompts[len(done) :]:
        keep(sink_runs.measure(model, stream, tokens, least=settings.least, ratio=settings.ratio))
    measured = done[: len(prompts)]
    targets = sink_runs.targets(measured, stream.places, randoms=settings.randoms, seed=settings.seed)
    for tokens, target in list(zip(prompts, targets, strict=False))[len(done) - len(prompts) :]:
        keep(sink_runs.cause(model, stream, tokens, target))
    return _result(model, settings, stream, measured, done[len(prompts) :], recorder)


def _result(
    model: Model, settings: Settings, stream: ResidualStream, measured: list[dict], caused: list[dict],
    recorder: Recorder,
) -> Sinks:  # fmt: skip
    names = [each.name for each in settings.texts]
    dims = sink_runs.found_dims(measured)
    entries = [
        [name, layer, block, position, sample["strings"][position], dim, value, abs(value) / median]
        for name, sample in zip(names, measured, strict=True)
        for layer, block, position, dim, value, median in sample["massive"]
    ]
    causes = [
        {
            "text": name,
            "layer": sample["layer"],
            **{key: row[key] for key in ("condition", "dim", "value", "loss")},
            "rise": row["loss"] - sample["conditions"][0]["loss"],
            "attention": float(torch.tensor(row["first_mass"])[sample["layer"] + 1 :].mean()),
        }
        for name, sample in zip(names, caused, strict=False)
        for row in sample["conditions"]
    ]
    columns = ["text", "layer", "condition", "dim", "value", "loss", "rise", "attention"]
    return Sinks(
        manifest=recorder.manifest(prompts=[sample["prompt"] for sample in measured], bos=measured[0]["bos"]),
        column_means=[torch.tensor(sample["column_means"]) for sample in measured],
        first_mass=torch.tensor([sample["first_mass"] for sample in measured]),
        value_ratio=torch.tensor([sample["value_ratio"] for sample in measured]),
        strings=[sample["strings"] for sample in measured],
        texts=pd.DataFrame(
            {
                "name": names,
                "tokens": [len(sample["strings"]) for sample in measured],
                "loss": [sample["loss"] for sample in measured],
            }
        ),
        places=tuple(stream.places),
        dims=tuple(dims),
        first=torch.tensor([sample["first"] for sample in measured])[..., dims],
        peaks=torch.tensor([sample["peaks"] for sample in measured]),
        massive=pd.DataFrame(entries, columns=["text", "layer", "block", "position", "token", "dim", "value", "ratio"]),
        phi=[torch.tensor(sample["phi"]) for sample in caused],
        causes=pd.DataFrame(causes, columns=columns),
        windows=tuple(measured[0]["windows"]),
        rule=settings.rule,
        threshold=settings.level,
        min_rows=settings.min_rows,
        epsilon=settings.epsilon,
        n_kv_heads=model.n_kv_heads,
    )
