"""`probe intervene act` in units of work: the gradient filter, then conditions by draw and split, and single heads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import pandas as pd
from torch import Tensor

from probe.analyses.act import classification
from probe.analyses.act.claims import CLAIMS
from probe.analyses.act.classification import Scorer, fitted_bias, losses, measures
from probe.analyses.act.conditions import ALL, BEST, BEST_BIAS, BIAS, CALIBRATION, NONE, RANDOM, WORST
from probe.analyses.act.gradient_filter import gradients
from probe.analyses.act.result import Calibration
from probe.analyses.act.settings import Settings
from probe.errors import UsageError
from probe.frame.analysis import Analysis, Cost, Facts, Measured, Prompt, Records, Unit
from probe.frame.run import runner
from probe.frame.speed import Speed, operations, plain_seconds
from probe.heads import Head
from probe.interventions import CalibrateSinks
from probe.interventions.sink_rules import THRESHOLDS
from probe.models import Model
from probe.saving.jsonable import dumps, encode
from probe.saving.manifest import Manifest, peak_memory

VARIANTS = {"paper": CalibrateSinks, "release": CalibrateSinks.release}


class ActAnalysis(Analysis[Settings, Calibration]):
    """Attention calibration on a classification task, beside its controls."""

    name, claims = "intervene act", CLAIMS

    def prepare(self, model: Model) -> None:
        asked = self.settings
        layers = sorted(set(asked.candidate_layers or range(2, model.n_layers - 1)))
        if not layers or layers[-1] >= model.n_layers:
            raise UsageError(f"--candidate-layers: expected layers within 0..{model.n_layers - 1}, got {layers}")
        self._candidates = [Head(layer, head) for layer in layers for head in range(model.n_heads)]
        most = len(self._candidates) // 2
        if asked.heads > most:
            raise UsageError(f"--heads: expected 1 to {most}, half of the candidates, got {asked.heads}")
        draw = random.Random(asked.seed)
        self._swept = sorted(draw.sample(self._candidates, min(asked.sweep, len(self._candidates))))
        self._random = [draw.sample(self._candidates, asked.heads) for _ in range(asked.draws)]
        examples = asked.examples
        if examples is None:
            examples = classification.sentiment() if asked.task is None else classification.read(asked.task)
        classification.check(examples, "examples" if asked.task is None else str(asked.task))
        self._examples = tuple(examples)
        splits = dict.fromkeys(example.split for example in examples)
        self._scorers = {split: Scorer(model, [each for each in examples if each.split == split]) for split in splits}

    def inputs(self) -> dict[str, Any]:
        content = dumps(encode([astuple(example) for example in self._examples]))
        return {"examples": hashlib.sha256(content.encode()).hexdigest()}

    def describe(self) -> str:
        prompts = ", ".join(f"{len(scorer.examples)} {split}" for split, scorer in self._scorers.items())
        return (
            f"{prompts} prompts; {self.settings.heads} of {len(self._candidates)} heads, {self.settings.draws} random "
            f"draws, {len(self._swept)} heads run alone"
        )

    def expected(self, facts: Facts) -> int:
        return 1 + len(self._swept) + len(self._scorers) * (4 + self.settings.draws)

    def estimate(self, model: Model, speed: Speed) -> Cost:
        read = {split: [len(tokens) for tokens in scorer.tokens] for split, scorer in self._scorers.items()}
        lengths, calibration = [length for each in read.values() for length in each], read[CALIBRATION]
        parts = [
            (f"{times * len(prompts):,} prompts {how}", times * sum(operations(model, each) for each in prompts))
            for prompts, times, how in (
                (lengths, 4 + self.settings.draws, "of every split under each condition"),
                (calibration, len(self._swept), "of the calibration split with single heads"),
                (calibration, 3, "of the calibration split for the gradient, a backward pass counted as two"),
            )
        ]
        spent = tuple((part, work * speed.per_operation) for part, work in parts)
        hidden = next(model.hf.get_input_embeddings().parameters()).shape[-1]
        return Cost(
            seconds=sum(seconds for _, seconds in spent),
            memory=peak_memory() + 4 * 16 * max(lengths) * model.n_layers * 16 * hidden,  # kept for the backward pass
            plain=plain_seconds(model, speed, [(length, 0) for length in lengths]),
            parts=spent,
        )

    def plan(self, facts: Facts, records: Records) -> Sequence[Unit]:
        if "gradient" not in records:
            return [Unit("gradient")]
        runs = [
            (f"{condition} {draw} {split}", heads, split)
            for condition, drawn in self._sets(records["gradient"]).items()
            for draw, heads in enumerate(drawn)
            for split in self._scorers
        ]
        runs += [(f"sweep {head}", [head], CALIBRATION) for head in self._swept]
        return [
            Unit("gradient"),
            *(Unit(name, {"heads": [list(head) for head in heads], "split": split}) for name, heads, split in runs),
        ]

    def measure(self, model: Model, unit: Unit) -> Measured:
        if unit.name == "gradient":
            scorer = self._scorers[CALIBRATION]
            scores = gradients(model, scorer, self._calibrating(self._candidates))
        else:
            scorer, heads = self._scorers[unit.arguments["split"]], [Head(*head) for head in unit.arguments["heads"]]
            with model.intervene(*([self._calibrating(heads)] if heads else [])):
                scores = scorer.scores()
        return Measured(scores, [Prompt.of(tokens) for tokens in scorer.tokens])

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Calibration:
        gradient = records["gradient"]
        answers = {split: scorer.answers for split, scorer in self._scorers.items()}
        ranked = self._ranked(gradient)
        scores = {
            (condition, draw, split): records[f"{condition} {draw} {split}"]
            for condition, drawn in self._sets(gradient).items()
            for draw in range(len(drawn))
            for split in answers
        }
        plain = losses(scores[NONE, 0, CALIBRATION], answers[CALIBRATION]).mean()
        effects = {
            head: float(losses(records[f"sweep {head}"], answers[CALIBRATION]).mean() - plain)
            for head in self._swept
        }
        bias, on_top = (fitted_bias(scores[each, 0, CALIBRATION], answers[CALIBRATION]) for each in (NONE, BEST))
        for split in answers:
            scores[BIAS, 0, split] = (scores[NONE, 0, split] + bias).log_softmax(-1)
            scores[BEST_BIAS, 0, split] = (scores[BEST, 0, split] + on_top).log_softmax(-1)
        rows = [
            {"condition": condition, "draw": draw, "split": split, "example": example, "loss": loss}
            for (condition, draw, split), each in scores.items()
            for example, loss in enumerate(losses(each, answers[split]).tolist())
        ]
        return Calibration(
            manifest=replace(manifest, bos=self._scorers[CALIBRATION].tokens[0].bos),
            conditions=pd.DataFrame(
                [
                    {"condition": condition, "draw": draw, "split": split} | measures(each, answers[split])
                    for (condition, draw, split), each in scores.items()
                ]
            ),
            losses=pd.DataFrame(rows),
            heads=pd.DataFrame(
                [
                    {"layer": head.layer, "head": head.head, "name": str(head), "gradient": float(gradient[head])}
                    | {"effect": effects.get(head, float("nan"))}
                    for head in ranked
                ]
            ),
            chosen=tuple(ranked[: self.settings.heads]),
            variant=self.settings.variant,
            k=self.settings.heads,
            labels=self._examples[0].labels,
            bias=bias,
        )

    def _calibrating(self, heads: Sequence[Head]) -> CalibrateSinks:
        asked = self.settings
        changes: dict[str, Any] = {"beta": asked.beta, "min_rows": asked.min_rows, "prefix": asked.prefix}
        if asked.rule is not None:
            rule: Any = asked.rule.replace("-", "_")
            changes |= {"rule": rule, "threshold": THRESHOLDS[rule]}
        if asked.threshold is not None:
            changes["threshold"] = asked.threshold
        if asked.spare is not None:
            changes["spare"] = asked.spare.replace("-", " ")
        return VARIANTS[asked.variant](heads, **changes)

    def _ranked(self, gradient: Tensor) -> list[Head]:
        return sorted(self._candidates, key=lambda head: float(gradient[head]))

    def _sets(self, gradient: Tensor) -> dict[str, list[list[Head]]]:
        """Return the sets of heads to calibrate under each condition, one for each draw."""
        ranked, k = self._ranked(gradient), self.settings.heads
        return {
            NONE: [[]], BEST: [ranked[:k]], WORST: [ranked[-k:]], ALL: [self._candidates], RANDOM: self._random,
        }  # fmt: skip


run = runner(ActAnalysis, Settings)
