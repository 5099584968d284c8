"""The analysis `stats`: one unit of work a text, whose record holds the means of the text's units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

import pandas as pd
import torch

from probe.analyses.stats.averages import over_queries
from probe.analyses.stats.corpus import documents
from probe.analyses.stats.prompts import Corpus, corpus
from probe.analyses.stats.result import TextStatistics
from probe.analyses.stats.settings import Settings
from probe.analyses.stats.statistics import chosen, measured
from probe.frame.analysis import Analysis, Cost, Facts, Measured, Prompt, Records, Unit
from probe.frame.run import runner
from probe.frame.speed import Speed, plain_seconds
from probe.models import Model
from probe.saving.manifest import Manifest, peak_memory

PASSES = 1.3  # measured seconds over those of plain prefill: 1.1 to 1.5 on a busy CPU (docs/stats.md)


class Stats(Analysis[Settings, TextStatistics]):
    """Attention statistics over the user's texts."""

    name = "stats"
    corpus: Corpus

    def prepare(self, model: Model) -> None:
        """Read, tokenize and cut into units every text."""
        self.corpus = corpus(model, documents(self.settings), self.settings)

    def inputs(self) -> dict[str, Any]:
        """Return a hash of the tokens of all texts and of their units; names and places of files are not in it."""
        texts = [[text.tokens.hash, [astuple(segment) for segment in text.segments]] for text in self.corpus.texts]
        return {"texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]}

    def describe(self) -> str:
        """Say what will be measured: texts, tokens, statistics, units, and what was cut or left out."""
        texts, repeated = self.corpus.texts, self.corpus.repeated
        cut = sum(text.cut for text in texts)
        statistics = ", ".join(statistic.name for statistic in chosen(self.settings))
        parts = [f"{len(texts)} text{'s' * (len(texts) != 1)} of {self.corpus.tokens:,} tokens"]
        parts += [f"{cut} cut after {self.settings.max_tokens} tokens"] if cut else []
        parts += [f"{repeated} repeated and left out"] if repeated else []
        return f"{', '.join(parts)}: {statistics}, averaged over each {self.settings.unit}"

    def estimate(self, model: Model, speed: Speed) -> Cost:
        """Return the seconds of reading all texts, and the memory of their means beside the longest text's queries."""
        plain = plain_seconds(model, speed, [(len(text.tokens), 0) for text in self.corpus.texts])
        values = 4 * len(chosen(self.settings)) * model.n_layers * model.n_heads
        units = sum(len(text.segments) for text in self.corpus.texts)
        longest = max(len(text.tokens) for text in self.corpus.texts)
        memory = peak_memory() + values * (4 * units + 6 * longest)  # records and result; the passes' own, in float64
        return Cost(seconds=PASSES * plain, memory=memory, plain=plain, parts=(("texts", PASSES * plain),))

    def plan(self, facts: Facts, records: Records) -> Sequence[Unit]:
        """Return one unit for each text, named by its tokens."""
        return [Unit(f"text {text.tokens.hash}", {"text": index}) for index, text in enumerate(self.corpus.texts)]

    def measure(self, model: Model, unit: Unit) -> Measured:
        """Return mean and deviation of each statistic in each unit of a text."""
        text = self.corpus.texts[unit.arguments["text"]]
        values = measured(model, text.tokens, self.settings)
        means, deviations = over_queries(values, text.owner, len(text.segments))
        return Measured({"means": means, "deviations": deviations}, [Prompt.of(text.tokens)])

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> TextStatistics:
        """Return the result, its texts in the order in which they were given."""
        texts = self.corpus.texts
        kept = [records[unit.name] for unit in self.plan(Facts.of(model), records)]
        return TextStatistics(
            manifest=replace(manifest, bos=texts[0].tokens.bos),
            texts=pd.DataFrame(
                [(text.name, len(text.tokens), text.tokens.hash) for text in texts],
                columns=["text", "tokens", "hash"],
            ),
            units=pd.DataFrame(
                [(index, *astuple(segment)) for index, text in enumerate(texts) for segment in text.segments],
                columns=["text", "unit", "part", "start", "end", "queries"],
            ),
            means=torch.cat([record["means"] for record in kept]),
            deviations=torch.cat([record["deviations"] for record in kept]),
            statistics={statistic.name: asdict(statistic) for statistic in chosen(self.settings)},
            layers=tuple(range(model.n_layers)),
            unit=self.settings.unit,
            format=self.settings.format,
        )


run = runner(Stats, Settings)
