"""What a needle run will cost, before it is run: time from a short measurement, memory from shapes.

Arithmetic of n new tokens after `past` cached ones: 2 n (parameters that multiply) + 4 layers heads head_dim n (past +
n / 2), scores and weighted values. A prefill of 192 tokens gives the seconds per operation, three decode steps the
seconds per step. Answers are taken to be half as long as allowed. Expect the right order, not the right minute: other
programs on the machine count in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probe.analyses.needle_runs import Plan
from probe.manifest import peak_memory

if TYPE_CHECKING:
    from probe.models import Model

MEASURED_TOKENS = 192
MEASURED_STEPS = 3
QUESTION = 90
"""Tokens that the template, the question and the instruction add to the prose, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """prompts: needle questions. tokens: read over all of them, after what they share. seconds. memory: peak bytes."""

    prompts: int
    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds per arithmetic operation while reading, and per token while answering."""

    per_operation: float
    per_step: float


def operations(model: Model, new: int, past: int = 0) -> float:
    """Arithmetic operations of reading `new` tokens after `past` cached ones, without the output layer."""
    embedding = model.hf.get_input_embeddings()
    matrices = sum(parameter.numel() for parameter in model.hf.parameters() if parameter.ndim > 1)
    weights = matrices - sum(parameter.numel() for parameter in embedding.parameters())
    attention = 4 * model.n_layers * model.n_heads * model.head_dim * new * (past + new / 2)
    return 2 * new * weights + attention


def measure(model: Model) -> Speed:
    """The speed of this model on this machine now; takes about a second for a small one."""
    ids = torch.arange(1, MEASURED_TOKENS + 1) % model.vocab
    model.prefill(ids)  # the first pass also pays for waking threads and allocating
    start = time.perf_counter()
    cache = model.prefill(ids)
    read = time.perf_counter() - start
    start = time.perf_counter()
    model.greedy(cache, ids[None, -1:], max_new_tokens=MEASURED_STEPS, stop=lambda emitted: False)
    step = (time.perf_counter() - start) / MEASURED_STEPS
    return Speed(per_operation=read / operations(model, MEASURED_TOKENS), per_step=step)


def estimate(model: Model, plan: Plan) -> Estimate:
    """What asking the plan's needles will cost, measured on the model where it stands."""
    speed = measure(model)
    stretches = list(_stretches(plan))
    reading = sum(operations(model, new, past) for new, past in stretches) * speed.per_operation
    answering = len(plan) * plan.max_new_tokens / 2 * speed.per_step
    return Estimate(
        prompts=len(plan),
        tokens=sum(new for new, _ in stretches),
        seconds=reading + answering,
        memory=peak_memory() + _working_memory(model, max(plan.lengths) + QUESTION + plan.max_new_tokens),
    )


def _stretches(plan: Plan) -> Sequence[tuple[int, int]]:
    """(new tokens, tokens before them) of every prefill: once what a group shares, then each prompt's rest."""
    per_depth = plan.per_group // len(plan.depths)
    found = []
    for length, _ in plan.groups():
        deepest = round(length * max(plan.depths) / 100)
        found.append((deepest, 0))
        for depth in plan.depths:
            kept = round(length * depth / 100)
            found += [(length - kept + QUESTION, kept)] * per_depth
    return found


def _working_memory(model: Model, tokens: int) -> int:
    """Bytes beside the weights: two key-value caches, and one layer's activations."""
    size = torch.finfo(model.dtype).bits // 8
    caches = 2 * 2 * model.n_layers * model.n_kv_heads * model.head_dim * tokens
    hidden = getattr(model.hf.config, "hidden_size", model.n_heads * model.head_dim)
    activations = tokens * 12 * hidden
    return size * (caches + activations)
