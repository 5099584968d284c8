"""Calibration: what calibrating sinks does to a classifier, as tables, sentences, claims and scores of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.act import claims
from probe.analyses.act.conditions import BEST, BIAS, CALIBRATION, NONE, RANDOM
from probe.analyses.measures.agreement import pearson, spearman
from probe.analyses.measures.intervals import mean_estimate
from probe.frame.findings import Estimate, Finding
from probe.frame.scores import HeadScore
from probe.frame.tables import Table, columns, written
from probe.heads import Head
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Calibration(Result):
    """The scores of a classifier under each condition, and the heads that were calibrated.

    conditions: one row for each condition, draw and split: accuracy, nll (nats), nll_low and nll_high (95 % bootstrap
    over examples), auc, n. losses: one row for each condition, draw, split and example: loss in nats. heads: one row
    for each candidate head: gradient (nats per unit of gate) and effect (nats; NaN where the head was not run alone).
    chosen: the heads of "best heads". variant: "release" or "paper". k: how many heads were chosen. bias: the constants
    of the labels.
    """

    conditions: pd.DataFrame
    losses: pd.DataFrame
    heads: pd.DataFrame
    chosen: tuple[Head, ...]
    variant: str
    k: int
    labels: tuple[str, ...]
    bias: Tensor

    @property
    def held_out(self) -> list[str]:
        """Return the splits that neither heads nor biases were chosen on."""
        return [split for split in self.conditions["split"].unique() if split != CALIBRATION]

    def to_df(self) -> pd.DataFrame:
        """Return a row for each condition and split, random draws averaged; conditions in the order of their loss."""
        numbers = ["accuracy", "nll", "auc"]
        table: Any = self.conditions.groupby(["split", "condition"], sort=False)[numbers].mean()
        return table.reset_index().sort_values(["split", "nll"], kind="stable", ignore_index=True)

    def agreement(self) -> dict[str, float]:
        """Return Spearman and Pearson correlation of the gradient with the exact effect, over heads that have both."""
        gradient, effect = self._swept()
        return {
            "heads": len(gradient),
            "spearman": spearman(gradient, effect).value,
            "pearson": float(pearson(gradient, effect)) if len(gradient) > 2 else float("nan"),
        }

    def value(self, condition: str, split: str, number: str) -> float:
        """Return accuracy, nll or auc of a condition, over its draws."""
        rows = self.conditions.query("condition == @condition and split == @split")
        return float(rows[number].mean())

    def gain(self, condition: str, over: str, split: str) -> Estimate:
        """Return how much lower the loss of a condition is than that of another, in nats, paired over examples."""
        rows: pd.DataFrame = self.losses.query("split == @split")
        before, after = (
            rows[rows["condition"] == name].groupby("example")["loss"].mean().sort_index() for name in (over, condition)
        )
        return mean_estimate(torch.tensor((before - after).to_numpy()), seed=self.manifest.seed)

    def explained(self, split: str) -> float | None:
        """Return the share of the best heads' gain that the label bias alone reaches; None if that may be no gain."""
        gain = self.gain(BEST, NONE, split)
        if not gain.low > 0:
            return None
        none, best, bias = (self.value(condition, split, "nll") for condition in (NONE, BEST, BIAS))
        return (none - bias) / (none - best)

    def verdict(self, split: str) -> str:
        """Return a sentence: how much of the gain on a split a shift of the label prior explains."""
        none, best, bias = (self.value(condition, split, "nll") for condition in (NONE, BEST, BIAS))
        areas = [self.value(condition, split, "auc") for condition in (NONE, BEST)]
        change = f"{split}: calibrating the best heads changes the loss from {none:.3f} to {best:.3f}"
        if best >= none:
            return f"{change}, so it does not help"
        share = self.explained(split)
        part = "the gain is within its error" if share is None else f"{share:.0%} of the gain"
        return (
            f"{change}; a label bias alone reaches {bias:.3f} ({part}); the AUC changes from {areas[0]:.3f} to "
            f"{areas[1]:.3f}"
        )

    def summary(self) -> tuple[str, ...]:
        """Return the result in sentences."""
        lines = [self.verdict(split) for split in self.held_out]
        agreement = self.agreement()
        if agreement["heads"] > 2:
            lines.append(
                f"gradient filter against {agreement['heads']} heads run alone: Spearman {agreement['spearman']:.3f}, "
                f"Pearson {agreement['pearson']:.3f}"
            )
        return (*lines, "calibrated: " + " ".join(map(str, sorted(self.chosen))))

    def findings(self) -> tuple[Finding, ...]:
        """Return the claims with what was measured on the first held-out split, and of the filter."""
        split, (gradient, effect) = self.held_out[0], self._swept()

        agreement = spearman(gradient, effect, seed=self.manifest.seed) if len(gradient) else None
        return (
            self.finding(claims.MORE_THAN_RANDOM, self.gain(BEST, RANDOM, split), self.gain(RANDOM, NONE, split)),
            self.finding(claims.MORE_THAN_BIAS, self.gain(BEST, BIAS, split), self.gain(BIAS, NONE, split)),
            self.finding(claims.FILTER_AGREES, agreement),
        )

    def head_scores(self) -> dict[str, HeadScore]:
        """Return the gradient of every candidate head, and the exact effect of those that were run alone."""
        rows = self.heads.sort_values(["layer", "head"])
        layers = tuple(int(layer) for layer in rows["layer"].unique())
        return {
            name: HeadScore(
                values=torch.tensor(rows[name].to_numpy()).reshape(len(layers), -1), unit=unit, layers=layers,
                sign="lower: calibrating the head's sinks lowers the loss more",
            )
            for name, unit in (("gradient", "nats per unit of gate"), ("effect", "nats"))
        }  # fmt: skip

    def tables(self) -> dict[str, Table]:
        """Return the tables: conditions by split, and heads in the order of the filter."""
        three, four = written(".3f"), written("+.4f")
        return {
            "conditions": Table(
                title="Conditions",
                rows=self.to_df(),
                columns=columns(
                    split="split",
                    condition="condition",
                    accuracy=("accuracy", three),
                    nll=("loss", three),
                    auc=("AUC", three),
                ),
                meaning="accuracy: share of examples whose best label is right. loss: of the right label, nats per "
                "example. AUC: area under the ROC curve of each label against the others, mean over labels; 0.5 is "
                f"chance. best, worst, random heads: {self.k} heads with calibrated sinks; random ones are a mean over "
                "draws. label bias: a constant for each label, fitted on the calibration split and added to its score.",
            ),
            "heads": Table(
                title="Heads that the gradient filter ranks first",
                rows=self.heads,
                columns=columns(name="head", gradient=("gradient", four), effect=("alone", four)),
                meaning="gradient: d loss / d gate on the calibration split, nats per unit of gate; the first heads "
                "are calibrated. alone: change of that loss in nats if only this head is calibrated, where it was run.",
                top=10,
            ),
        }

    def figures(self) -> dict[str, Plot]:
        """Return the plots: conditions (loss, accuracy and AUC), filter (gradient against effect, where it was run)."""
        from probe.analyses.act.figures import condition_bars, filter_scatter

        drawn = {"conditions": condition_bars(self)}
        if self.heads["effect"].notna().any():
            drawn["filter"] = filter_scatter(self)
        return drawn

    def _swept(self) -> tuple[Tensor, Tensor]:
        """Return gradient and effect of the heads that were run alone, [heads] each."""
        rows = self.heads.dropna(subset=["effect"])
        return torch.tensor(rows["gradient"].to_numpy()), torch.tensor(rows["effect"].to_numpy())
