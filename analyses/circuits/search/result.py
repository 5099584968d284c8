"""The circuit of a task: the heads through which its answer comes, stage by stage from the logits backwards.

Wang et al. 2022; Merullo et al. 2024. Each stage patches every head along the path into what the stage before found:

    logits    heads -> logits                            movers, and what works against them
    queries   heads -> queries of the movers at END      inhibition heads, content gatherers
    values    heads -> values that those heads read      induction and duplicate-token heads
    keys      heads -> keys that those heads compare     earlier heads, such as previous-token heads

An effect is 100 (LD patched - LD clean) / (LD corrupted - LD clean), a quotient of means over prompts: positive
supports the answer. A stage keeps its largest effects, those above one percent and twice their standard error. The
circuit is what all stages keep, and is then put to the test by knocking out everything else, beside random circuits of
the same size (`knockout`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.end_attention import EndAttention, end_attention
from probe.analyses.circuits.knockout import FILLS, Bench
from probe.analyses.circuits.roles import called, is_right, is_wrong, reading
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.analyses.circuits.tasks.registry import task as built
from probe.analyses.circuits.tasks.task import Task
from probe.errors import UsageError
from probe.heads import Head
from probe.patching.effects import Effects, joined
from probe.patching.nodes import Input, keys, queries, values
from probe.patching.paths import to_inputs, to_logits
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, Steps, carry_out, config_of
from probe.saving.results import Result
from probe.tokens import ids_hash

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model
    from probe.patching.pairs import Pairs

STAGES = ("logits", "queries", "values", "keys")
LEAST = 1.0
"""Percent of the gap that a head of a circuit moves at least."""
ERRORS = 2.0
"""How many standard errors an effect is from zero at least."""
TESTS = ("test", "what", "heads", "ld", "ld_error", "value")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does."""

    task: str = "ioi"
    prompts: int = 40
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, such as the shots of Colored Objects."""
    top: int = 10
    """Heads that a stage keeps at most."""
    stages: int = 4
    """How many stages to go back from the logits."""
    freeze_mlps: bool = False
    """Keep MLPs at their clean values too."""
    fill: str = "corrupted"
    """What a head writes that is knocked out."""
    tests: bool = True
    """Whether to put the circuit to the test."""
    draws: int = 5
    """Random circuits, and random subsets."""
    batch: int = 20
    """Prompts that run at once; what one step of a run folder holds."""

    def __post_init__(self) -> None:
        for name, least, most in (("stages", 1, len(STAGES)), ("top", 1, None), ("draws", 1, None), ("batch", 1, None)):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                raise UsageError(f"--{name}: expected {least}{f' to {most}' if most else ' or more'}, got {value}")
        if self.fill not in FILLS:
            raise UsageError(f"--fill: expected one of {', '.join(FILLS)}, got {self.fill!r}")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Circuit(Result):
    """The heads of a task's circuit.

    effects: one row for each stage and head: stage, layer, head, name, percent and percent_error (of the gap), raw and
    standard_error (logits), kept, role. receivers: what each stage patched into, by name. attention: END's row of every
    head over the roles. tests: knock-outs, one row each: test, what, heads, ld, ld_error and value (what the test is
    of). behaviour: accuracy and LD of the model on the prompts. gap: mean LD of corrupted less that of clean prompts.
    """

    task: str
    effects: pd.DataFrame
    receivers: dict[str, list[str]]
    attention: pd.DataFrame
    tests: pd.DataFrame
    behaviour: dict[str, float | int | None]
    gap: float
    facts: dict[str, Any]

    def stage(self, name: str) -> pd.DataFrame:
        """The effects of one stage, largest first."""
        rows = self.effects[self.effects["stage"] == name]
        return rows.sort_values("percent", key=abs, ascending=False, kind="stable", ignore_index=True)

    def heads(self, stage: str | None = None) -> list[Head]:
        """The heads that a stage, or all, kept, in the model's order."""
        rows = self.effects[self.effects["kept"] & ((self.effects["stage"] == stage) | (stage is None))]
        return sorted({Head(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)})

    def percent(self, stage: str = "logits") -> Tensor:
        """Effects of one stage, [layers, heads], percent of the gap."""
        rows = self.effects[self.effects["stage"] == stage]
        table = torch.zeros(int(rows["layer"].max()) + 1, int(rows["head"].max()) + 1, dtype=torch.float64)
        table[rows["layer"].tolist(), rows["head"].tolist()] = torch.tensor(rows["percent"].tolist()).double()
        return table

    def value(self, test: str, what: str) -> float:
        """The value of one knock-out test, averaged over its draws."""
        rows = self.tests[(self.tests["test"] == test) & (self.tests["what"] == what)]
        return float(rows["value"].mean())

    @property
    def findings(self) -> tuple[str, ...]:
        """The analysis in sentences."""
        first = self.stage("logits").iloc[0]
        lines = [
            f"LD {self.behaviour['ld']:.2f}, corrupted {self.behaviour['ld'] + self.gap:.2f}; "  # pyright: ignore[reportOperatorIssue]
            f"{first['name']} moves most of it by itself: {first['percent']:+.1f} ± {first['percent_error']:.1f} %, "
            f"{first['role']}",
        ]
        if len(self.tests):
            lines.append(
                f"with everything but {len(self.heads())} heads knocked out "
                f"{self.value('faithfulness', 'circuit'):.0%} of it is left; with random circuits of the same size "
                f"{self.value('faithfulness', 'random'):.0%}"
            )
        return tuple(lines)

    def to_df(self) -> pd.DataFrame:
        """The heads that the stages kept, from the logits backwards, largest effect first."""
        kept = pd.concat([self.stage(name) for name in STAGES if name in set(self.effects["stage"])])
        return kept[kept["kept"]].reset_index(drop=True)

    def figures(self) -> dict[str, Plot]:
        """circuit: the kept heads by stage and layer. heads: effects on the logits. tests: the knock-outs, if any."""
        from probe.analyses.circuits.search.figures import circuit_figure, effect_map, knockout_figure

        drawn = {"circuit": circuit_figure(self), "heads": effect_map(self)}
        return drawn | ({"tests": knockout_figure(self)} if len(self.tests) else {})


def run(
    model: Model, *, settings: Settings | None = None, task: Task | None = None,
    out: RunFolder | str | Path | None = None, progress: Progress | None = None,
) -> Circuit:  # fmt: skip
    """The circuit of a task. task: prompts of one's own, else those that settings name. out: a folder to continue from
    and to save in. progress: called with (steps done, steps planned). Raises UsageError."""
    chosen = settings or Settings()
    made = prompts(model, chosen) if task is None else task
    return carry_out(
        Circuit,
        out,
        lambda: run_config(model, chosen, made),
        lambda folder: _Search(model, chosen, made, folder, progress).circuit(),
    )


def prompts(model: Model, settings: Settings) -> Task:
    """The task that settings name."""
    return built(model, settings.task, prompts=settings.prompts, seed=settings.seed, **settings.options)


def run_config(model: Model, settings: Settings, task: Task) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "circuit", asdict(settings) | {"pairs": task.pairs(model).hashes()})


class _Search:
    """One run: the stages, then the tests, each step kept."""

    def __init__(
        self, model: Model, settings: Settings, task: Task, folder: RunFolder | None, progress: Progress | None
    ) -> None:
        self.model, self.settings, self.task = model, settings, task
        self.pairs = task.pairs(model)
        self.parts = list(self.pairs.batches(settings.batch))
        self.recorder = Recorder(
            model, analysis="circuit", options=asdict(settings), seed=settings.seed,
            before=0.0 if folder is None else folder.seconds,
        )  # fmt: skip
        self.total = 2 + settings.stages * len(self.parts)
        if settings.tests:
            self.total += 3 + 3 * settings.draws + 2 * settings.stages + settings.top
        self.steps = Steps(folder, self.total, progress)

    def circuit(self) -> Circuit:
        """The circuit, put to the test."""
        model = self.model
        behaviour = self.steps("behaviour", lambda: accuracy(model, self.pairs, seed=self.settings.seed).to_dict())
        seen = self.steps("attention", self._attention)
        attention = EndAttention(torch.tensor(seen["mass"]), tuple(seen["roles"]))
        tables: list[pd.DataFrame] = []
        receivers: dict[str, list[str]] = {}
        effects: Effects | None = None
        into: Sequence[Input] = ()
        for stage in STAGES[: self.settings.stages]:
            if stage != "logits" and not into:
                break
            found = self._effects(stage, into)
            effects = effects or found
            table = stage_table(found, stage, attention, top=self.settings.top)
            tables.append(table)
            receivers[stage] = [str(each) for each in into] or ["logits"]
            into = self._next(stage, table, attention)
        assert effects is not None
        table = pd.concat(tables, ignore_index=True)
        kept = {stage: _heads(table[table["kept"] & (table["stage"] == stage)]) for stage in receivers}
        return Circuit(
            manifest=self.recorder.manifest(prompts=[ids_hash(row) for row in self.pairs.clean]),
            task=self.task.name,
            effects=table,
            receivers=receivers,
            attention=attention.to_df(),
            tests=self._tests(kept) if self.settings.tests else pd.DataFrame(columns=list(TESTS)),
            behaviour=behaviour,
            gap=effects.gap,
            facts=dict(self.task.facts),
        )

    def _attention(self) -> dict[str, Any]:
        found = end_attention(self.model, self.pairs)
        return {"mass": found.mass.tolist(), "roles": list(found.roles)}

    def _effects(self, stage: str, into: Sequence[Input]) -> Effects:
        """The effects of all heads in one stage, batch by batch."""
        own = {"freeze_mlps": self.settings.freeze_mlps, "batch": self.settings.batch}

        def patched(part: Pairs) -> dict[str, Any]:
            if stage == "logits":
                found = to_logits(self.model, part, **own)
            else:
                found = to_inputs(self.model, part, into, end=stage == "queries", **own)
            return {name: getattr(found, name).tolist() for name in ("patched", "clean", "corrupted")}

        parts = []
        for number, (rows, part) in enumerate(self.parts):
            found = self.steps(f"{stage} {number}", lambda part=part: patched(part))
            parts.append(
                (rows, Effects(tuple(self.model.heads()), **{name: torch.tensor(found[name]) for name in found}))
            )
        return joined(parts, prompts=len(self.pairs))

    def _next(self, stage: str, table: pd.DataFrame, attention: EndAttention) -> Sequence[Input]:
        """The inputs that the next stage patches into: of the kept heads that support the answer."""
        supporting = _heads(table[table["kept"] & (table["percent"] > 0)])
        if stage == "logits":
            named = any(is_right(role) or is_wrong(role) for role in attention.roles)
            movers = [head for head in supporting if max(reading(attention, head)) >= 0.15] if named else supporting
            return queries(movers or supporting)
        return values(self.model, supporting) if stage == "queries" else keys(self.model, supporting)

    def _tests(self, kept: dict[str, list[Head]]) -> pd.DataFrame:
        """Faithfulness, completeness and minimality, beside random circuits of the same size."""
        bench: Bench | None = None
        model, draw = self.model, random.Random(self.settings.seed)
        circuit = sorted({head for heads in kept.values() for head in heads})
        everything = model.heads()

        def score(name: str, heads: Sequence[Head]) -> Tensor:
            def compute() -> list[float]:
                nonlocal bench
                bench = bench or Bench(model, self.pairs, fill=self.settings.fill, batch=self.settings.batch)
                return bench.score(heads).tolist()

            return torch.tensor(self.steps(name, compute)).double()

        whole, nothing = score("whole", everything), score("nothing", ())
        span = float(whole.mean() - nothing.mean())
        rows: list[dict[str, Any]] = []

        def note(test: str, what: str, heads: Sequence[Head], found: Tensor, value: float) -> None:
            rows.append(
                {"test": test, "what": what, "heads": len(heads), "ld": float(found.mean())}
                | {"ld_error": float(found.std() / len(found) ** 0.5), "value": value}
            )

        def left(found: Tensor) -> float:
            return float(found.mean() - nothing.mean()) / span

        note("faithfulness", "whole model", everything, whole, 1.0)
        note("faithfulness", "nothing", (), nothing, 0.0)
        own = score("circuit", circuit)
        note("faithfulness", "circuit", circuit, own, left(own))
        for number in range(self.settings.draws):
            other = draw.sample(everything, len(circuit))
            found = score(f"random {number}", other)
            note("faithfulness", "random", other, found, left(found))
        subsets = {f"without {stage}": heads for stage, heads in kept.items() if heads}
        for number in range(self.settings.draws):
            subsets[f"without random {number}"] = draw.sample(circuit, max(1, len(circuit) // 2))
        for what, gone in subsets.items():
            less = score(f"circuit {what}", [head for head in circuit if head not in gone])
            model_less = score(f"model {what}", [head for head in everything if head not in gone])
            note("completeness", what, gone, less, abs(float(less.mean() - model_less.mean())) / abs(span))
        for head in kept["logits"]:
            less = score(f"circuit without {head}", [each for each in circuit if each != head])
            note("minimality", str(head), [head], less, float(own.mean() - less.mean()) / span)
        return pd.DataFrame(rows)


def stage_table(effects: Effects, stage: str, attention: EndAttention, *, top: int) -> pd.DataFrame:
    """One row for each head: its effect, whether the stage keeps it, and what it is called."""
    percent, error = effects.normalised, effects.normalised_error
    order = percent.abs().argsort(descending=True, stable=True)[:top].tolist()
    strong = (percent.abs() >= LEAST) & (percent.abs() >= ERRORS * error.nan_to_num(0.0))
    kept = {place for place in order if bool(strong[place])}
    heads: list[Head] = list(effects.nodes)  # pyright: ignore[reportAssignmentType]  # all heads were asked for
    return pd.DataFrame(
        {
            "stage": stage,
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "name": [str(head) for head in heads],
            "percent": percent.tolist(),
            "percent_error": error.tolist(),
            "raw": effects.raw.tolist(),
            "standard_error": effects.standard_error.tolist(),
            "kept": [place in kept for place in range(len(heads))],
            "role": [called(attention, head, float(percent[place])) for place, head in enumerate(heads)],
        }
    )


def _heads(rows: pd.DataFrame) -> list[Head]:
    return [Head(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
