"""The speed of a model on this machine, measured in a second or two, and the arithmetic of reading tokens.

Arithmetic of n new tokens after `past` cached ones: 2 n (parameters that multiply) + 4 layers heads head_dim n (past +
n / 2), scores and weighted values. Reading 192 tokens gives the seconds per operation; a few decode steps, of one row
and of eight, give the seconds per step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.models import Model

TOKENS, STEPS, ROWS = 192, 4, 8
"""Tokens to read, fewer where the model has fewer positions; decode steps; rows of the batched steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds per arithmetic operation while reading, per decode step, and per further row in a decode step."""

    per_operation: float
    per_step: float
    per_row: float


def measure(model: Model) -> Speed:
    """Return the speed of this model on this machine now; takes a second or two for a small one."""
    import torch

    from probe.engine.decoding import repeat

    tokens = min(TOKENS, model.context - STEPS - 1)  # a small model may have fewer positions
    ids = torch.arange(1, tokens + 1) % model.vocab
    model.prefill(ids)  # the first pass also pays for waking threads and allocating
    start = time.perf_counter()
    cache = model.prefill(ids)
    read = time.perf_counter() - start

    def step(rows: int) -> float:
        copies, last = repeat(cache, rows), ids[-1:].expand(rows, 1)
        start = time.perf_counter()
        model.greedy(copies, last, max_new_tokens=STEPS, stop=lambda emitted: False)
        return (time.perf_counter() - start) / STEPS

    one, many = step(1), step(ROWS)
    return Speed(
        per_operation=read / operations(model, tokens),
        per_step=one,
        per_row=max(many - one, 0.0) / (ROWS - 1),
    )


def operations(model: Model, new: int, past: int = 0) -> float:
    """Return the arithmetic operations of reading `new` tokens after `past` cached ones, without the output layer."""
    embedding = sum(parameter.numel() for parameter in model.hf.get_input_embeddings().parameters())
    weights = sum(parameter.numel() for parameter in model.hf.parameters() if parameter.ndim > 1) - embedding
    attention = 4 * model.n_layers * model.n_heads * model.head_dim * new * (past + new / 2)
    return 2 * new * weights + attention


def plain_seconds(model: Model, speed: Speed, prompts: Iterable[tuple[int, int]]) -> float:
    """Return the seconds of plain prefill and decode of prompts, given as (tokens, tokens written after them)."""
    return sum(
        operations(model, tokens) * speed.per_operation + written * speed.per_step for tokens, written in prompts
    )
