"""Sinks: what a run of `probe sinks` measured on each text, as tables, sentences, claims and scores of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean, mean_estimate
from probe.analyses.sinks import claims
from probe.analyses.sinks.massive_activations import steps
from probe.analyses.sinks.passes import CONDITIONS, CONTROL, MEAN, NONE, ONLY, RANDOM, ZERO
from probe.analyses.sinks.settings import MIN_MAGNITUDE
from probe.analyses.sinks.statistics import later_per_head, row_counts, share_of_heads, sink_rate
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore
from probe.interventions.sink_rules import THRESHOLDS, Rule, sinks
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.frame.tables import Table

WRITES = 0.1
"""A sub-block is said to write or erase a dimension if it changes it by this share of its largest value."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sinks(Result):
    """Attention, massive activations and conditions of each text.

    Axes are texts, layers, heads, keys; places are sub-blocks in the order in which they write.

    column_means: one [layers, heads, keys] per text. first_mass, value_ratio: [texts, layers, heads].
    strings: the tokens of each text. texts: one row per text: name, tokens, loss (nats per token).
    places: (layer, block). dims: the dimensions that are massive on a first token, largest first. first: the first
    token's stream [texts, places, dims]. peaks: [texts, places, 2], largest and median |x| over tokens and dimensions.
    massive: one row per massive activation: text, layer, block, position, token, dim, value, ratio.
    phi: one [layers - 1, keys] per text, entering the layers from 1 on; empty without massive dimensions.
    causes: one row per text and condition: condition, dim, layer it was set after, value, loss, rise, and the attention
    to the first token in all layers after that one (attention).
    windows: by layer, the number of keys that a query sees; None for all keys before it.
    rule, threshold, min_rows: what counts as a later sink. epsilon: of the sink rate.
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
        """Return which tokens of a text are sinks of which heads, by this rule: [layers, heads, keys] bool."""
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
        """Return the share of heads whose column mean of the first token exceeds epsilon: [texts]."""
        return torch.stack([sink_rate(means, epsilon=self.epsilon)[0] for means in self.column_means])

    def later(self) -> Tensor:
        """Return the number of sinks beside the first token: [texts, layers, heads] float64."""
        return torch.stack([later_per_head(self.found(text)) for text in range(len(self.texts))]).double()

    def by_layer(self) -> pd.DataFrame:
        """Return a row per layer: first_mass, low, high, value_ratio, later (sinks per head), largest, median |x|."""
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
        """Return the tokens that are a sink of any head, most first: text, position, token, initial, share, layers."""
        rows = []
        for text, name in enumerate(self.texts["name"]):
            share, layers = share_of_heads(self.found(text))
            for position in share.nonzero().flatten().tolist():
                token = self.strings[text][position]
                rows.append([name, position, token, position == 0, float(share[position]), int(layers[position])])
        table = pd.DataFrame(rows, columns=["text", "position", "token", "initial", "share", "layers"])
        return table.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def rules(self) -> pd.DataFrame:
        """Return later sinks per head by rule and min_rows, mean over heads, least and most over the texts."""
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
        """Return which sub-blocks write and erase massive dimensions of first tokens: dim, layer, block, change, after.

        They change a dimension by a tenth of its largest value or by 100, in the mean over texts.
        """
        rows = []
        mean = self.first.mean(0)
        for index, dim in enumerate(self.dims):
            changes = steps(mean[:, index])
            bar = min(WRITES * float(mean[:, index].abs().max()), MIN_MAGNITUDE)
            for place in (changes.abs() >= bar).nonzero().flatten().tolist():
                layer, block = self.places[place]
                rows.append([dim, layer, block, float(changes[place]), float(mean[place, index])])
        return pd.DataFrame(rows, columns=["dim", "layer", "block", "change", "after"])

    def condition(self, name: str, column: str = "loss") -> float:
        """Return the mean over the texts of a condition's column; NaN where the condition was not run."""
        return float(self.causes.loc[self.causes["condition"] == name, column].mean())

    def summary(self) -> tuple[str, ...]:
        """Return the result in sentences."""
        rate = float(self.sink_rate().mean())
        lines = [
            f"{float(self.first_mass.mean()):.0%} of the attention goes to the first token, which is a sink (column "
            f"mean above {self.epsilon:g}) of {rate:.0%} of the heads."
        ]
        if not self.dims:
            return (*lines, "No activation of a first token is massive, so its stream was not changed.")
        dim, layer = self.dims[0], int(self.causes["layer"].iloc[0])
        mean = f"its mean over the other texts gives {self.condition(MEAN):.2f}"
        if len(self.texts) == 1:
            mean = "setting it to its mean over other texts needs several texts"
        lines += [
            f"Massive dimensions of first tokens, largest first: {', '.join(map(str, self.dims))}. Dimension {dim} "
            f"reaches {float(self.first[:, :, 0].abs().max()):,.0f}.",
            f"Setting dimension {dim} of the first token to zero after layer {layer} changes the loss from "
            f"{self.condition(NONE):.2f} to {self.condition(ZERO):.2f} nats per token; {mean}; a neighbouring "
            f"dimension at zero gives {self.condition(CONTROL):.2f}, a random one {self.condition(RANDOM):.2f}, and "
            f"all dimensions but {dim} at zero give {self.condition(ONLY):.2f}.",
            f"In the layers after {layer}, the first token receives {self.condition(NONE, 'attention'):.0%} of the "
            f"attention, and {self.condition(ZERO, 'attention'):.0%} with dimension {dim} at zero.",
        ]
        return tuple(lines)

    def findings(self) -> tuple[Finding, ...]:
        """Return the claims of the papers with what was measured, over texts."""
        pairs = zip(self.column_means, self.value_ratio, strict=True)
        ratio = torch.stack([ratios[means[..., 0] > self.epsilon].mean() for means, ratios in pairs])
        rates = [sink_rate(means, epsilon=self.epsilon) for means in self.column_means]
        later = torch.stack([rate[1 : 1 - self.min_rows or None].mean() for rate in rates])

        return (
            self.finding(claims.FIRST_TOKEN, self._mean(self.sink_rate()), self._mean(later)),
            self.finding(claims.SMALL_VALUE, self._mean(ratio)),
            self.finding(claims.ZERO, self._over_texts(ZERO, "rise"), self._over_texts(CONTROL, "rise")),
            self.finding(claims.MEAN, self._over_texts(MEAN, "rise"), self._over_texts(ZERO, "rise")),
            self.finding(claims.CAUSE, self._over_texts(ZERO, "attention"), self._over_texts(CONTROL, "attention")),
        )

    def _mean(self, values: Tensor) -> Estimate:
        return mean_estimate(values, seed=self.manifest.seed)

    def _over_texts(self, name: str, column: str) -> Estimate | None:
        """Return a condition's column over texts; None where the condition was not run."""
        values = self.causes[self.causes["condition"] == name].groupby("text", sort=False)[column].mean()
        return self._mean(torch.tensor(values.tolist())) if len(values) else None

    def head_scores(self) -> dict[str, HeadScore]:
        """Return first-token mass, later sinks and value norm ratio of every head, means over the texts."""
        low, high = bootstrap_mean(self.first_mass, seed=self.manifest.seed)
        one = len(self.texts) == 1
        return {
            "first_mass": HeadScore(
                values=self.first_mass.mean(0), unit="share of attention", sign="higher: looks at the first token more",
                low=None if one else low, high=None if one else high,
            ),
            "later_sinks": HeadScore(
                values=self.later().mean(0), unit="tokens per text", sign="higher: more sinks beside the first token"
            ),
            "value_norm_ratio": HeadScore(
                values=self.value_ratio.mean(0), unit="ratio of norms",
                sign="lower: attending to the first token adds less",
            ),
        }  # fmt: skip

    def conditions(self) -> pd.DataFrame:
        """Return a row per condition: condition, loss, rise with its interval over texts (low, high), attention."""
        rows = []
        for name in CONDITIONS:
            if (rise := self._over_texts(name, "rise")) is None:
                continue
            low, high = (float("nan"),) * 2 if name == NONE else (rise.low, rise.high)
            rows.append([name, self.condition(name), rise.value, low, high, self.condition(name, "attention")])
        return pd.DataFrame(rows, columns=["condition", "loss", "rise", "low", "high", "attention"])

    def tables(self) -> dict[str, Table]:
        """Return the tables: layers, heads, tokens, rules, and with a massive dimension writes and conditions."""
        from probe.analyses.sinks.tables import tables

        return tables(self)

    def to_df(self) -> pd.DataFrame:
        """Return a row per head: layer, head, kv_group, first_mass with bounds and other scores, most mass first."""
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
        """Return the plots: sinks (mass of every head), profile (by layer), tokens (in a text), causes (conditions)."""
        from probe.analyses.sinks.figures import cause_figure, mass_map, profile, token_figure

        drawn = {"sinks": mass_map(self), "profile": profile(self), "tokens": token_figure(self)}
        return drawn | ({"causes": cause_figure(self)} if self.dims else {})
