"""`probe sinks` in units of work: each text is measured, then its first token is changed under each condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import pandas as pd
import torch

from probe.analyses.sinks import passes
from probe.analyses.sinks.claims import CLAIMS
from probe.analyses.sinks.result import Sinks
from probe.analyses.sinks.settings import Settings
from probe.analyses.sinks.texts import TEXTS, Prose, from_files, of_prompts
from probe.errors import UsageError
from probe.frame.analysis import Analysis, Cost, Facts, Measured, Prompt, Records, Unit
from probe.frame.run import runner
from probe.frame.speed import Speed, operations, plain_seconds
from probe.interventions.sink_rules import THRESHOLDS, Rule
from probe.models import Model
from probe.saving.manifest import Manifest, peak_memory
from probe.tokens import Tokens


class SinkAnalysis(Analysis[Settings, Sinks]):
    """Attention sinks and massive activations of a model."""

    name, claims = "sinks", CLAIMS

    def prepare(self, model: Model) -> None:
        asked = self.settings
        self._rule: Rule = asked.rule.replace("-", "_")  # type: ignore[assignment]
        self._threshold = THRESHOLDS[self._rule] if asked.threshold is None else asked.threshold
        self._texts = asked.prose or (*of_prompts(asked.prompt), *from_files(asked.prompt_file)) or TEXTS
        self._prompts = [_tokens(model, text, asked.max_tokens) for text in self._texts]
        self._places = model.stream.places

    def inputs(self) -> dict[str, object]:
        pairs = zip(self._texts, self._prompts, strict=True)
        # the rule's own threshold is the same run, whether it is typed or not
        return {"texts": [[text.name, tokens.hash] for text, tokens in pairs], "threshold": self._threshold}

    def describe(self) -> str:
        count = len(self._texts)
        return f"{count} text{'s' if count > 1 else ''}, {sum(map(len, self._prompts)):,} tokens"

    def expected(self, facts: Facts) -> int:
        return 2 * len(self._prompts)

    def estimate(self, model: Model, speed: Speed) -> Cost:
        lengths = [len(tokens) for tokens in self._prompts]
        per_token = (
            2 * model.vocab * next(model.hf.get_input_embeddings().parameters()).shape[-1]
        )  # of the output layer
        once = sum(operations(model, length) + length * per_token for length in lengths) * speed.per_operation
        more = len(passes.CONDITIONS) + self.settings.randoms  # one for each condition and random dimension, and phi
        return Cost(
            seconds=(1 + more) * once,
            memory=peak_memory() + 12 * max(lengths) * model.vocab,  # logits three times, in float32
            plain=plain_seconds(model, speed, [(length, 0) for length in lengths]),
            parts=(
                (f"1 pass over {sum(lengths):,} tokens to measure sinks and massive activations", once),
                (f"{more} passes over {sum(lengths):,} tokens with the first token's stream changed", more * once),
            ),
        )

    def plan(self, facts: Facts, records: Records) -> Sequence[Unit]:
        measured = [Unit(f"text {n}", {"text": n}) for n in range(len(self._prompts))]
        if any(unit.name not in records for unit in measured):
            return measured
        targets = passes.targets(
            [records[unit.name] for unit in measured], self._places, randoms=self.settings.randoms,
            seed=self.settings.seed,
        )  # fmt: skip
        changed = [Unit(f"conditions {n}", {"text": n, "target": asdict(each)}) for n, each in enumerate(targets)]
        return [*measured, *changed]

    def measure(self, model: Model, unit: Unit) -> Measured:
        tokens = self._prompts[unit.arguments["text"]]
        if (target := unit.arguments.get("target")) is not None:
            sample = passes.cause(model, tokens, passes.Target(**target))
        else:
            limits = {"min_magnitude": self.settings.min_magnitude, "min_ratio": self.settings.min_ratio}
            sample = passes.measure(model, tokens, **limits)
        return Measured(sample, [Prompt.of(tokens)])

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Sinks:
        names, strings = [text.name for text in self._texts], [tokens.strings() for tokens in self._prompts]
        measured = [records[f"text {n}"] for n in range(len(names))]
        caused = [records[name] for n in range(len(names)) if (name := f"conditions {n}") in records]
        dims = passes.massive_dims(measured)
        massive = [
            [name, layer, block, position, tokens[position], dim, value, abs(value) / median]
            for name, tokens, sample in zip(names, strings, measured, strict=True)
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
        losses = [sample["loss"] for sample in measured]
        return Sinks(
            manifest=replace(manifest, bos=self._prompts[0].bos),
            column_means=[torch.tensor(sample["column_means"]) for sample in measured],
            first_mass=torch.tensor([sample["first_mass"] for sample in measured]),
            value_ratio=torch.tensor([sample["value_ratio"] for sample in measured]),
            strings=strings,
            texts=pd.DataFrame({"name": names, "tokens": [len(each) for each in strings], "loss": losses}),
            places=tuple(self._places),
            dims=tuple(dims),
            first=torch.tensor([sample["first"] for sample in measured])[..., dims],
            peaks=torch.tensor([sample["peaks"] for sample in measured]),
            massive=pd.DataFrame(
                massive, columns=["text", "layer", "block", "position", "token", "dim", "value", "ratio"]
            ),
            phi=[torch.tensor(sample["phi"]) for sample in caused],
            causes=pd.DataFrame(causes, columns=columns),
            windows=tuple(measured[0]["windows"]),
            rule=self._rule,
            threshold=self._threshold,
            min_rows=self.settings.min_rows,
            epsilon=self.settings.epsilon,
            n_kv_heads=model.n_kv_heads,
        )


def _tokens(model: Model, prose: Prose, limit: int | None) -> Tokens:
    """Return a text as tokens, cut after `limit`. Raises UsageError for one token, and for more than the context."""
    tokens = model.tokens(prose.text)
    if limit is not None and len(tokens) > limit:
        tokens = model.tokens(prose.text[: tokens.offsets[limit - 1][1]])
    if len(tokens) < 2:
        raise UsageError(f"{prose.name}: expected a text of at least 2 tokens, got {len(tokens)}")
    if len(tokens) > model.context:
        raise UsageError(
            f"{prose.name} has {len(tokens)} tokens and {model.name} {model.context} positions: give --max-tokens"
        )
    return tokens


run = runner(SinkAnalysis, Settings)
