"""Cost of a run before it is run: seconds from a short measurement, memory from shapes.

`probe.frame.speed` has the arithmetic. The beginning that prompts share is counted once; answers are taken to be half
as long as allowed. Other programs that run on the machine change the speed, so expect the right order of magnitude, not
the right minute.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from probe.analyses.heads import patterns, sink_scores
from probe.analyses.heads.needle_runs import Questions
from probe.analyses.heads.validation_samples import FACT_TOKENS, Check
from probe.analyses.texts.closed_book import FACTS
from probe.frame.analysis import Cost
from probe.frame.speed import Speed, operations, plain_seconds
from probe.models import Model
from probe.saving.manifest import peak_memory

QUESTION = 90
"""Tokens that the template, the question and the instruction add to the prose, roughly."""

Prompts = list[tuple[int, int]]
"""(tokens, tokens written after them) of each prompt."""


def cost(
    model: Model, speed: Speed, *, questions: Questions | None, kinds: Collection[str], check: Check | None = None
) -> Cost:
    """Return what a run costs at this speed: its needle questions, if any, the other scores, and its validation."""
    parts: list[tuple[str, float]] = []
    prompts = _score_prompts(kinds)
    longest, rows = sink_scores.LENGTH, 1
    if questions is not None:
        pieces = stretches(questions)
        reading = sum(operations(model, new, past) for new, past in pieces) * speed.per_operation
        title = f"{len(questions)} needles, {sum(new for new, _ in pieces):,} tokens to read"
        parts.append((title, reading + len(questions) * questions.max_new_tokens / 2 * speed.per_step))
        prompts += _needle_prompts(questions)
        longest = max(longest, *questions.lengths)
    if kinds:
        parts.append(("the other scores", _scoring(model, speed, kinds)))
    if check is not None:
        conditions = len(check.conditions.all)
        rows = min(conditions, check.batch_size)
        facts = [(QUESTION // 2, FACT_TOKENS // 2)] * len(FACTS)
        asked = _needle_prompts(check.questions)[: check.most] + facts[: check.most]
        passages = [(check.passage_tokens, 0)] * check.passages
        prompts += asked + passages
        reading = plain_seconds(model, speed, [(tokens, 0) for tokens, _ in asked + passages * conditions])
        batches = -(-conditions // rows)
        decoding = sum(written for _, written in asked) * batches * (speed.per_step + (rows - 1) * speed.per_row)
        parts.append((f"pruning, {conditions} conditions a sample", reading + decoding))
    return Cost(
        seconds=sum(seconds for _, seconds in parts),
        memory=peak_memory() + _working_memory(model, longest + QUESTION, rows=rows),
        plain=plain_seconds(model, speed, prompts),
        parts=tuple(parts),
    )


def stretches(questions: Questions) -> Prompts:
    """Return (new tokens, tokens before them) of every prefill: what a group shares, then the rest of each prompt."""
    per_depth = questions.per_group // len(questions.depths)
    found = []
    for length, _ in questions.groups():
        found.append((round(length * max(questions.depths) / 100), 0))
        for depth in questions.depths:
            kept = round(length * depth / 100)
            found += [(length - kept + QUESTION, kept)] * per_depth
    return found


def _needle_prompts(questions: Questions) -> Prompts:
    written = questions.max_new_tokens // 2
    return [(length + QUESTION, written) for length, _ in questions.groups() for _ in range(questions.per_group)]


def _score_prompts(kinds: Collection[str]) -> Prompts:
    found: Prompts = []
    if set(kinds) & set(patterns.PATTERNS):
        found += [(2 * patterns.LENGTH, 0)] * patterns.SEQUENCES
    if "sink" in kinds:
        found += [(sink_scores.LENGTH, 0)] * sink_scores.SAMPLES
    return found


def _scoring(model: Model, speed: Speed, kinds: Collection[str]) -> float:
    seconds = plain_seconds(model, speed, _score_prompts(kinds))
    if "copying" in kinds:
        hidden = _hidden_size(model)
        seconds += (2 * model.vocab * hidden**2 + operations(model, hidden)) * speed.per_operation
    return seconds


def _working_memory(model: Model, tokens: int, *, rows: int) -> int:
    """Return the bytes beside the weights: key-value caches, one shared and one per row, and a layer's activations."""
    size = torch.finfo(model.dtype).bits // 8
    caches = 2 * (1 + rows) * model.n_layers * model.n_kv_heads * model.head_dim * tokens
    return size * (caches + 12 * tokens * _hidden_size(model))


def _hidden_size(model: Model) -> int:
    return next(model.hf.get_input_embeddings().parameters()).shape[-1]
