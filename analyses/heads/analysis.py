"""Units of work of `probe heads`: needle questions one by one, the other scores, then the samples of a validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from probe.analyses.heads import copying, patterns, sink_scores
from probe.analyses.heads.catalogue import HeadCatalogue, catalogue
from probe.analyses.heads.claims import CLAIMS
from probe.analyses.heads.comparison import Comparison, compare, score_map
from probe.analyses.heads.costs import cost
from probe.analyses.heads.needle_runs import Questions, Reader, put
from probe.analyses.heads.needles import read_needles
from probe.analyses.heads.pruning_conditions import Conditions
from probe.analyses.heads.result import Heads
from probe.analyses.heads.retrieval import check_retrieved, is_stable, retrieval_heads, scored
from probe.analyses.heads.settings import Settings
from probe.analyses.heads.validation import KS, ranking, validation
from probe.analyses.heads.validation_samples import Check, held_out
from probe.analyses.texts.haystacks import Haystack, from_files, language_reference
from probe.errors import UsageError
from probe.frame.analysis import Analysis, Cost, Facts, Measured, Records, Unit
from probe.frame.run import runner
from probe.frame.speed import Speed
from probe.heads import Head
from probe.models import Model
from probe.saving.manifest import Manifest


class HeadAnalysis(Analysis[Settings, Heads]):
    """The analysis `heads`."""

    name = "heads"
    claims = CLAIMS

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._reader: Reader | None = None
        self._other: HeadCatalogue | None = None

    @cached_property
    def haystack(self) -> Haystack:
        """Return the prose of the run."""
        if self.settings.haystack is not None:
            return self.settings.haystack
        return from_files(self.settings.haystacks) if self.settings.haystacks else language_reference()

    @cached_property
    def questions(self) -> Questions:
        """Return the needle questions; they are asked only where retrieval is."""
        asked = self.settings
        return Questions(
            haystack=self.haystack, lengths=asked.asked_lengths, depths=asked.depths, families=asked.families,
            needles=asked.own_needles if asked.needles is None else read_needles(asked.needles),
            samples=asked.samples, seed=asked.seed, max_new_tokens=asked.max_new_tokens,
            style=asked.prompt_style,  # type: ignore[arg-type]
        )  # fmt: skip

    @cached_property
    def held_out(self) -> Questions:
        """Return the needle questions of a validation."""
        asked = self.settings
        return held_out(self.haystack, seed=asked.seed + 1, style=asked.prompt_style)

    def prepare(self, model: Model) -> None:
        settings, facts = self.settings, Facts.of(model)
        if settings.compare is not None:
            self._other = _catalogue_of(settings, facts)
        if settings.retrieves:
            self.questions.check(model)
            self._read(self.questions).read(model, 0)  # a needle that is too long for its context is seen here
        if settings.validate:
            self._check(facts, settings.ranked if settings.ranked is not None else ())
            self.held_out.check(model)

    def is_current(self, result: Heads) -> bool:
        """Return whether the run that --compare names has the scores that the saved comparison shows."""
        return result.comparison == self._compared(result.catalogue)

    def inputs(self) -> dict[str, Any]:
        found: dict[str, Any] = {"haystack_sha256": self.haystack.sha256}
        if self.questions.needles is None:
            found["pool_sha256"] = self.questions.pool.sha256
        else:
            found["needles"] = [[each.text, each.question, each.answer] for each in self.questions.needles]
        if (ranked := self.settings.ranked) is not None:
            found["ranked"] = ranked.tolist() if isinstance(ranked, Tensor) else [list(head) for head in ranked]
        return found

    def describe(self) -> str:
        said = []
        if self.settings.retrieves:
            lengths = ", ".join(f"{length:,}" for length in self.questions.lengths)
            said.append(f"{len(self.questions)} needle questions in {lengths} tokens")
        if others := self.settings.other_kinds:
            said.append(f"scores {', '.join(others)}".replace("_", "-"))
        if self.settings.validate:
            said.append(f"a validation with the fills {', '.join(self.settings.fills)}")
        return "; ".join(said)

    def expected(self, facts: Facts) -> int:
        asked = len(self.questions) if self.settings.retrieves else 0
        samples = self._check(facts).samples() if self.settings.validate else ()
        return asked + len(self._score_units()) + len(samples)

    def estimate(self, model: Model, speed: Speed) -> Cost:
        questions = self.questions if self.settings.retrieves else None
        check = self._check(Facts.of(model)) if self.settings.validate else None
        return cost(model, speed, questions=questions, kinds=self.settings.other_kinds, check=check)

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        asked = self._needle_units(facts, records)
        if any(unit.name not in records for unit in asked):
            return asked
        if asked:
            check_retrieved([records[unit.name] for unit in asked], facts)
        units = [*asked, *self._score_units()]
        if self.settings.validate:
            check = self._check(facts, self._ranked(facts, records))
            # what a sample gives depends on the heads at the top, not on the order of the rest
            best = [list(head) for head in check.conditions.ranked[: max(check.conditions.ks)]]
            units += [Unit(self._validation_name(name), {"sample": name, "best": best}) for name in check.samples()]
        return units

    def measure(self, model: Model, unit: Unit) -> Measured:
        if unit.name == "patterns":
            return patterns.measure(model, seed=self.settings.seed)
        if unit.name == "copying":
            return copying.measure(model)
        if unit.name == "sink":
            return sink_scores.measure(model, haystack=self.haystack)
        if "question" in unit.arguments:
            prompt, group = self._read(self.questions).read(model, unit.arguments["question"])
            return put(model, prompt, group.cache(model, prompt), max_new_tokens=self.settings.max_new_tokens)
        check = self._check(Facts.of(model), [Head(*each) for each in unit.arguments["best"]])
        return check.measure(model, self._read(self.held_out), unit.arguments["sample"])

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Heads:
        facts, settings = Facts.of(model), self.settings
        retrieval = checked = None
        samples: dict[str, Tensor] = {}
        if asked := [records[unit.name] for unit in self._needle_units(facts, records)]:
            manifest = replace(manifest, bos=asked[0]["bos"])
            early = len(asked) < len(self.questions)
            retrieval = retrieval_heads(asked, facts, manifest, variant=settings.score, stopped_early=early)
            samples["retrieval"] = retrieval.per_sample
        if settings.validate:
            check = self._check(facts, self._ranked(facts, records))
            done = [records[self._validation_name(name)] for name in check.samples()]
            manifest = replace(manifest, bos=done[0]["bos"])
            checked = validation(done, check.conditions, settings.phase, manifest)
        computed, notes = {}, []
        for unit in self._score_units():
            record = records[unit.name]
            if unit.name == "copying":
                computed["copying"] = record["copying"]
                notes = [f"copying: {record['norms']}", *(f"copying, {reason}" for reason in record["unread"])]
                continue
            samples |= {kind: record[kind] for kind in settings.other_kinds if kind in record}
            manifest = manifest if asked else replace(manifest, bos=record["bos"])
        table = catalogue(samples, manifest, n_kv_heads=facts.n_kv_heads, computed=computed, notes=notes)
        return Heads(
            manifest=manifest, retrieval=retrieval, catalogue=table, validation=checked,
            comparison=self._compared(table),
        )  # fmt: skip

    def _compared(self, table: HeadCatalogue) -> Comparison | None:
        """Return the agreement of the first score with that of the run that --compare names."""
        return None if self._other is None else compare(table, self._other, kind=next(iter(table.scores)))

    def _needle_units(self, facts: Facts, records: Records) -> list[Unit]:
        """Return the needle questions that are known now; with --until-stable the next one depends on those before."""
        if not self.settings.retrieves:
            return []
        units = [Unit(f"needle {index}", {"question": index}) for index in range(len(self.questions))]
        if not self.settings.until_stable:
            return units
        done = [unit for unit in units if unit.name in records]
        samples = [records[unit.name] for unit in done]
        if is_stable(scored(samples, facts, variant=self.settings.score)):
            return done
        return units[: len(done) + 1]

    def _score_units(self) -> list[Unit]:
        kinds = set(self.settings.other_kinds)
        measured = {"patterns": set(patterns.PATTERNS), "copying": {"copying"}, "sink": {"sink"}}
        return [Unit(name) for name, gives in measured.items() if kinds & gives]

    def _validation_name(self, sample: str) -> str:
        """Return the name of a sample's unit: all conditions run in one batch, so the fills and the phase are in it."""
        return f"validation {'+'.join(self.settings.fills)} {self.settings.phase}, {sample}"

    def _ranked(self, facts: Facts, records: Records) -> Tensor | Sequence[Head]:
        """Return the score map, or the heads, that a validation takes its best heads from."""
        if self.settings.ranked is not None:
            return self.settings.ranked
        samples = [records[unit.name] for unit in self._needle_units(facts, records)]
        return torch.stack(scored(samples, facts, variant=self.settings.score)).mean(0)

    def _check(self, facts: Facts, scores: Tensor | Sequence[Head] = ()) -> Check:
        """Return the validation of the heads that score highest."""
        ranked = ranking(scores, facts)
        ks = tuple(k for k in KS if 2 * k <= len(ranked))
        if not ks:
            raise UsageError(f"--validate needs {2 * min(KS)} heads, half of them as a control; got {len(ranked)}")
        conditions = Conditions(ranked, ks, self.settings.fills, seed=self.settings.seed + 1)  # type: ignore[arg-type]
        return Check(
            questions=self.held_out, conditions=conditions, most=self.settings.held_out,
            phase=self.settings.phase,  # type: ignore[arg-type]
        )  # fmt: skip

    def _read(self, questions: Questions) -> Reader:
        """Return the reader of these questions; one at a time keeps its key-value cache."""
        if self._reader is None or self._reader.questions is not questions:
            self._reader = Reader(questions)
        return self._reader


def _catalogue_of(settings: Settings, facts: Facts) -> HeadCatalogue:
    """Return the scores of the run that --compare names; raise UsageError where they cannot be compared."""
    folder, kind = settings.compare, "retrieval" if settings.retrieves else settings.other_kinds[0]
    assert folder is not None
    if not (folder / "catalogue" / "result.json").exists():
        raise UsageError(f"--compare: expected the folder of a finished run of probe heads, got {folder}")
    other = HeadCatalogue.load(folder / "catalogue")
    shape = tuple(score_map(other, kind).shape)
    if shape != (facts.n_layers, facts.n_heads):
        raise UsageError(
            f"--compare: expected a model of {facts.n_layers} layers x {facts.n_heads} heads, got "
            f"{shape[0]} x {shape[1]} in {folder}"
        )
    return other


run = runner(HeadAnalysis, Settings)
