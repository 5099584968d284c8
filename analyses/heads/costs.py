"""What a run will cost before it is run: time from a short measurement, memory from shapes.

Arithmetic of n new tokens after `past` cached ones: 2 n (parameters that multiply) + 4 layers heads head_dim n (past +
n / 2), scores and weighted values. Reading 192 tokens gives the seconds per operation; a few decode steps, of one row
and of eight, give the seconds per step. Answers are taken to be half as long as allowed. Expect the right order, not
the right minute: what else runs on the machine counts in.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads import sink_scores, validation
from probe.analyses.heads.needle_runs import Plan
from probe.analyses.texts.closed_book import FACTS
from probe.engine.decoding import repeat
from probe.saving.manifest import peak_memory

if TYPE_CHECKING:
    from probe.models import Model

MEASURED_TOKENS, MEASURED_STEPS, MEASURED_ROWS = 192, 4, 8
QUESTION = 90
"""Tokens that the template, the question and the instruction add to the prose, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """needles: questions to ask. tokens: to read for them, shared prose counted once.

    needle_seconds, score_seconds, validation_seconds: of the three parts of a run, 0 for one that is not asked for.
    memory: peak bytes of the process.
    """

    needles: int
    tokens: int
    needle_seconds: float
    score_seconds: float
    validation_seconds: float
    memory: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.needle_seconds + self.score_seconds + self.validation_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds per arithmetic operation while reading, per decode step, and per further row in a decode step."""

    per_operation: float
    per_step: float
    per_row: float


def estimate(
    model: Model, *, plan: Plan | None, kinds: Collection[str], conditions: int = 0, speed: Speed | None = None
) -> Estimate:
    """What a run of `probe heads` will cost on this machine now.

    plan: the needle questions, if any. kinds: the other scores. conditions: prunings per sample of a validation.
    speed: as `measure` found it; None measures now.
    """
    speed = measure(model) if speed is None else speed
    stretches = [] if plan is None else list(_stretches(plan))
    longest = max((_default(sink_scores.run, "length"), *(plan.lengths if plan is not None else ()))) + QUESTION
    return Estimate(
        needles=0 if plan is None else len(plan),
        tokens=sum(new for new, _ in stretches),
        needle_seconds=0.0 if plan is None else _reading(model, speed, stretches) + _answering(speed, plan),
        score_seconds=_scoring(model, speed, kinds),
        validation_seconds=_validating(model, speed, conditions) if conditions else 0.0,
        memory=peak_memory() + _working_memory(model, longest, rows=_rows(conditions)),
    )


def measure(model: Model) -> Speed:
    """The speed of this model on this machine now; takes a second or two for a small one."""
    ids = torch.arange(1, MEASURED_TOKENS + 1) % model.vocab
    model.prefill(ids)  # the first pass also pays for waking threads and allocating
    start = time.perf_counter()
    cache = model.prefill(ids)
    read = time.perf_counter() - start

    def step(rows: int) -> float:
        copies, last = repeat(cache, rows), ids[-1:].expand(rows, 1)
        start = time.perf_counter()
        model.greedy(copies, last, max_new_tokens=MEASURED_STEPS, stop=lambda emitted: False)
        return (time.perf_counter() - start) / MEASURED_STEPS

    one, many = step(1), step(MEASURED_ROWS)
    return Speed(
        per_operation=read / operations(model, MEASURED_TOKENS),
        per_step=one,
        per_row=max(many - one, 0.0) / (MEASURED_ROWS - 1),
    )


def operations(model: Model, new: int, past: int = 0) -> float:
    """Arithmetic operations of reading `new` tokens after `past` cached ones, without the output layer."""
    embedding = sum(parameter.numel() for parameter in model.hf.get_input_embeddings().parameters())
    weights = sum(parameter.numel() for parameter in model.hf.parameters() if parameter.ndim > 1) - embedding
    attention = 4 * model.n_layers * model.n_heads * model.head_dim * new * (past + new / 2)
    return 2 * new * weights + attention


def _stretches(plan: Plan) -> Iterator[tuple[int, int]]:
    """(new tokens, tokens before them) of every prefill: once what a group shares, then each prompt's rest."""
    per_depth = plan.per_group // len(plan.depths)
    for length, _ in plan.groups():
        yield round(length * max(plan.depths) / 100), 0
        for depth in plan.depths:
            kept = round(length * depth / 100)
            for _ in range(per_depth):
                yield length - kept + QUESTION, kept


def _reading(model: Model, speed: Speed, stretches: list[tuple[int, int]]) -> float:
    return sum(operations(model, new, past) for new, past in stretches) * speed.per_operation


def _answering(speed: Speed, plan: Plan) -> float:
    return len(plan) * plan.max_new_tokens / 2 * speed.per_step


def _scoring(model: Model, speed: Speed, kinds: Collection[str]) -> float:
    prompts: list[int] = []
    if set(kinds) & set(pattern_heads.PATTERNS):
        prompts += [2 * _default(pattern_heads.run, "length")] * _default(pattern_heads.run, "sequences")
    if "sink" in kinds:
        prompts += [_default(sink_scores.run, "length")] * _default(sink_scores.run, "samples")
    work = sum(operations(model, length) for length in prompts)
    if "copying" in kinds:
        hidden = _hidden_size(model)
        work += 2 * model.vocab * hidden**2 + operations(model, hidden)
    return work * speed.per_operation


def _validating(model: Model, speed: Speed, conditions: int) -> float:
    run = validation.validate
    lengths, depths = _default(run, "lengths"), _default(run, "depths")
    asked = len(depths) * len(_default(run, "families")) * _default(run, "samples")
    needles = [(length + QUESTION, 0) for length in lengths] * asked
    facts = [(QUESTION // 2, 0)] * len(FACTS)
    prose = [(_default(run, "passage_tokens"), 0)] * (_default(run, "passages") * conditions)
    batches = -(-conditions // _rows(conditions))
    steps = (len(needles) * _default(run, "max_new_tokens") / 2 + len(facts) * 8) * batches
    decoding = steps * (speed.per_step + (_rows(conditions) - 1) * speed.per_row)
    return _reading(model, speed, needles + facts + prose) + decoding


def _rows(conditions: int) -> int:
    """Rows of the batches that a validation runs; 1 without one."""
    return max(1, min(conditions, _default(validation.validate, "batch_size")))


def _working_memory(model: Model, tokens: int, *, rows: int) -> int:
    """Bytes beside the weights: key-value caches, a shared one and one per row, and one layer's activations."""
    size = torch.finfo(model.dtype).bits // 8
    caches = 2 * (1 + rows) * model.n_layers * model.n_kv_heads * model.head_dim * tokens
    activations = 12 * tokens * _hidden_size(model)
    return size * (caches + activations)


def _hidden_size(model: Model) -> int:
    return next(model.hf.get_input_embeddings().parameters()).shape[-1]


def _default(function: Callable[..., Any], option: str) -> Any:
    """The default of an option, read from the function itself so that it cannot fall behind."""
    return inspect.signature(function).parameters[option].default
