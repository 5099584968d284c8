"""Attention calibration (ACT) on a classification task, with what would refute it.

Yu et al. 2024 (ICML): attention sinks in the middle of a prompt are calibrated in the heads where that helps
(`probe.interventions.CalibrateSinks`), found on a calibration set. Two filters find them: the exact one runs the set
once for each head; the gradient filter gets d loss / d gate of all heads, where a gate blends a head between its own
output and its calibrated one, from one backward pass. Heads are ranked by the loss, for accuracy does not move on
small sets.

Controls. The same number of random heads, the heads that the filter puts last, and all heads. And one constant for each
label, fitted on the same calibration set without any intervention: what a shift of the label prior does by itself. A
shift leaves the ROC AUC as it is, so a gain with the same AUC says that labels, not texts, were told apart better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.act import classification
from probe.analyses.act.classification import Example, Scorer, accuracy, area_under_curve, fitted_bias, losses
from probe.analyses.measures.intervals import bootstrap_mean
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions import Blend, CalibrateSinks
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, Steps, carry_out, config_of
from probe.saving.results import Result

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model

PRESETS: dict[str, Callable[..., CalibrateSinks]] = {"paper": CalibrateSinks, "release": CalibrateSinks.release}
NONE, BIAS, BEST, BEST_BIAS = "no heads", "label bias alone", "best heads", "best heads + label bias"
WORST, ALL, RANDOM = "worst heads", "all heads", "random heads"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Calibration(Result):
    """What calibrating sinks does to a classifier.

    conditions: one row for each condition, draw and split: accuracy, nll (nats), nll_low and nll_high (95 % bootstrap),
    auc, n. heads: one row per candidate head: gradient (nats per unit of gate) and effect (nats; NaN where the exact
    filter was not run). chosen: the heads of "best heads". preset, k: what was asked. bias: constants of the labels.
    """

    conditions: pd.DataFrame
    heads: pd.DataFrame
    chosen: tuple[Head, ...]
    preset: str
    k: int
    labels: tuple[str, ...]
    bias: Tensor

    def to_df(self) -> pd.DataFrame:
        """One row for each condition and split, random draws averaged; conditions in the order of their loss."""
        numbers = ["accuracy", "nll", "auc"]
        table = self.conditions.groupby(["split", "condition"], sort=False)[numbers].mean().reset_index()
        return table.sort_values(["split", "nll"], kind="stable", ignore_index=True)

    def agreement(self) -> dict[str, float]:
        """Spearman and Pearson correlation of the gradient with the exact effect, over the heads that have both."""
        swept = self.heads.dropna(subset=["effect"])
        if len(swept) < 3:
            return {"heads": len(swept), "spearman": float("nan"), "pearson": float("nan")}
        pair = swept[["gradient", "effect"]]
        return {
            "heads": len(swept),
            "spearman": float(pair.rank().corr().iloc[0, 1]),
            "pearson": float(pair.corr().iloc[0, 1]),
        }

    def value(self, condition: str, split: str, number: str) -> float:
        """Accuracy, nll or auc of a condition, over its draws."""
        rows = self.conditions.query("condition == @condition and split == @split")
        return float(rows[number].mean())

    def explained(self, split: str) -> float | None:
        """Share of the best heads' gain in loss that the label bias alone reaches; None where they gain nothing."""
        none, best, bias = (self.value(condition, split, "nll") for condition in (NONE, BEST, BIAS))
        return None if best >= none else (none - bias) / (none - best)

    def verdict(self, split: str) -> str:
        """One sentence: how much of the gain a shift of the label prior explains on a split."""
        none, best, bias = (self.value(condition, split, "nll") for condition in (NONE, BEST, BIAS))
        areas = [self.value(condition, split, "auc") for condition in (NONE, BEST)]
        share = self.explained(split)
        if share is None:
            return f"{split}: the calibrated heads do not help (loss {none:.3f} to {best:.3f})"
        return (
            f"{split}: loss {none:.3f} to {best:.3f}; a label bias alone reaches {bias:.3f} ({share:.0%} of the gain); "
            f"AUC {areas[0]:.3f} to {areas[1]:.3f}"
        )

    def figures(self) -> dict[str, Plot]:
        """conditions: loss, accuracy and AUC of each. filter: gradient against exact effect, where that was run."""
        from probe.analyses.act.figures import condition_bars, filter_scatter

        drawn = {"conditions": condition_bars(self)}
        if self.heads["effect"].notna().any():
            drawn["filter"] = filter_scatter(self)
        return drawn


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does."""

    examples: tuple[Example, ...]
    preset: str = "release"
    k: int = 30
    layers: tuple[int, ...]
    draws: int = 5
    sweep: int = 60
    seed: int = 0
    settings: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """As JSON."""
        examples = [[each.prompt, list(each.labels), each.answer, each.split] for each in self.examples]
        names = ("preset", "k", "draws", "sweep", "seed")
        return {name: getattr(self, name) for name in names} | {
            "examples": examples, "layers": list(self.layers), "settings": dict(self.settings),
        }  # fmt: skip


def options(
    model: Model,
    *,
    examples: Sequence[Example] | None = None,
    preset: str = "release",
    k: int = 30,
    layers: Sequence[int] | None = None,
    draws: int = 5,
    sweep: int = 60,
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """The plan that `run` follows when given the same options. Raises UsageError."""
    if preset not in PRESETS:
        raise UsageError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    own = tuple(range(2, model.n_layers - 1)) if layers is None else tuple(sorted(set(layers)))
    if not own or own[0] < 0 or own[-1] >= model.n_layers:
        raise UsageError(f"--layers: expected layers within 0..{model.n_layers - 1}, got {list(own)}")
    if not 1 <= k <= len(own) * model.n_heads // 2:
        raise UsageError(f"--heads: expected 1 to {len(own) * model.n_heads // 2}, half of the candidates, got {k}")
    if draws < 1:
        raise UsageError(f"--draws: expected at least 1, got {draws}")
    PRESETS[preset]((), **settings)  # refuses what it cannot follow
    examples = classification.sentiment() if examples is None else examples
    classification.check(examples, "examples")
    return Plan(
        examples=tuple(examples),
        preset=preset, k=k, layers=own, draws=draws, sweep=sweep, seed=seed, settings=settings,
    )  # fmt: skip


def run(
    model: Model, *, out: RunFolder | str | Path | None = None, progress: Progress | None = None, **chosen: Any
) -> Calibration:
    """ACT on a classification task: filter, conditions and controls.

    examples: a task (`classification.read`), default the built-in sentiment one. preset: "release" (sinks by column
    means above 0.1) or "paper" (above 5 / N). k: how many heads to calibrate. layers: candidates, default all but the
    first two and the last. draws: random sets of k heads. sweep: on how many heads, drawn at random, to run the exact
    filter too. seed. Further options go to the preset, such as `beta` or `min_rows`. out: a folder to continue from
    and to save in. progress: called with (steps done, steps planned). Raises UsageError.
    """
    plan = options(model, **chosen)
    return carry_out_plan(model, plan, out=out, progress=progress)


def run_config(model: Model, plan: Plan) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "act", plan.config())


def carry_out_plan(
    model: Model, plan: Plan, *, out: RunFolder | str | Path | None = None, progress: Progress | None = None
) -> Calibration:
    """The plan's result; steps that the folder holds are not done again, and the result is saved there."""
    return carry_out(
        Calibration, out, lambda: run_config(model, plan), lambda folder: _measured(model, plan, folder, progress)
    )


def _measured(model: Model, plan: Plan, folder: RunFolder | None, progress: Progress | None) -> Calibration:
    recorder = Recorder(
        model, analysis="act", options=plan.config(), seed=plan.seed, before=0.0 if folder is None else folder.seconds
    )
    candidates = [Head(layer, head) for layer in plan.layers for head in range(model.n_heads)]
    random_heads = random.Random(plan.seed)
    swept = sorted(random_heads.sample(candidates, min(plan.sweep, len(candidates))))
    splits = list(dict.fromkeys(example.split for example in plan.examples))
    scorers = {split: Scorer(model, [each for each in plan.examples if each.split == split]) for split in splits}
    calibration = scorers["calibration"]
    step = Steps(folder, 1 + len(swept) + len(splits) * (4 + plan.draws), progress)

    def scored(heads: Sequence[Head], scorer: Scorer) -> list[list[float]]:
        with model.intervene(*([act(heads)] if heads else [])):
            return scorer.scores().tolist()

    def act(heads: Sequence[Head]) -> CalibrateSinks:
        return PRESETS[plan.preset](heads, **plan.settings)

    gradient = torch.tensor(
        step("gradient", lambda: gradients(model, calibration, act(candidates)).tolist()), dtype=torch.float64
    )
    ranked = sorted(candidates, key=lambda head: float(gradient[head]))
    sets = {NONE: [()], BEST: [ranked[: plan.k]], WORST: [ranked[-plan.k :]], ALL: [candidates]}
    sets[RANDOM] = [random_heads.sample(candidates, plan.k) for _ in range(plan.draws)]
    found = {
        (condition, draw, split): torch.tensor(
            step(f"{condition} {draw} {split}", lambda heads=heads, split=split: scored(heads, scorers[split])),
            dtype=torch.float64,
        )
        for condition, drawn in sets.items()
        for draw, heads in enumerate(drawn)
        for split in splits
    }
    before = losses(found[NONE, 0, "calibration"], calibration.answers).mean()
    effects = {}
    for head in swept:
        scores = torch.tensor(step(f"sweep {head}", lambda head=head: scored([head], calibration)), dtype=torch.float64)
        effects[head] = float(losses(scores, calibration.answers).mean() - before)
    bias = fitted_bias(found[NONE, 0, "calibration"], calibration.answers)
    on_top = fitted_bias(found[BEST, 0, "calibration"], calibration.answers)
    for split in splits:
        found[BIAS, 0, split] = (found[NONE, 0, split] + bias).log_softmax(-1)
        found[BEST_BIAS, 0, split] = (found[BEST, 0, split] + on_top).log_softmax(-1)
    result = Calibration(
        manifest=recorder.manifest(prompts=[each for scorer in scorers.values() for each in scorer.tokens]),
        conditions=pd.DataFrame(
            [
                {"condition": condition, "draw": draw, "split": split} | measures(scores, scorers[split].answers)
                for (condition, draw, split), scores in found.items()
            ]
        ),
        heads=pd.DataFrame(
            [
                {"layer": head.layer, "head": head.head, "name": str(head), "gradient": float(gradient[head])}
                | {"effect": effects.get(head, float("nan"))}
                for head in ranked
            ]
        ),
        chosen=tuple(ranked[: plan.k]),
        preset=plan.preset,
        k=plan.k,
        labels=plan.examples[0].labels,
        bias=bias,
    )
    if folder is not None:
        result.save(folder.path)
    return result


def measures(scores: Tensor, answers: Tensor) -> dict[str, float]:
    """How good label scores are: accuracy, nll with its bootstrap interval, auc, n."""
    each = losses(scores, answers)
    low, high = bootstrap_mean(each)
    return {
        "accuracy": accuracy(scores, answers),
        "nll": float(each.mean()),
        "nll_low": float(low),
        "nll_high": float(high),
        "auc": area_under_curve(scores, answers),
        "n": len(answers),
    }


def gradients(model: Model, scorer: Scorer, intervention: CalibrateSinks) -> Tensor:
    """d (mean loss) / d (gate of each head) at gates 0, [layers, heads] float64: one backward pass over the set."""
    gates = torch.zeros(model.n_layers, model.n_heads, device=model.device, requires_grad=True)
    weights = [parameter for parameter in model.hf.parameters() if parameter.requires_grad]
    answers = scorer.answers
    try:
        for parameter in weights:  # only the gates' gradients are wanted
            parameter.requires_grad_(False)
        with torch.enable_grad(), model.intervene(Blend(intervention, gates)):
            for places, scores in scorer.batches():
                loss = losses(scores, answers[places].to(scores.device)).sum() / len(answers)
                if loss.requires_grad:  # unless no sink was found, or nothing is taken from those that were
                    loss.backward()
    finally:
        for parameter in weights:
            parameter.requires_grad_(True)
    return (torch.zeros_like(gates) if gates.grad is None else gates.grad).double().cpu()
