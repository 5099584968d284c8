"""One prompt under many prunings at once: each condition is a row of the batch.

In phase "decode" only the steps that write the answer are pruned, from the one that reads the last prompt token on: the
prompt is read once and its key-value cache is repeated per row. In phase "all" every row reads the prompt for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from probe.analyses.heads.pruning_conditions import Condition
from probe.engine.decoding import repeat
from probe.heads import Head
from probe.interventions import PruneHeads
from probe.models import Model

Phase = Literal["decode", "all"]
Row = tuple[Condition, tuple[Head, ...]]


def decode_pruned(
    model: Model,
    ids: Tensor,
    rows: Sequence[Row],
    *,
    phase: Phase,
    cache: DynamicCache | None,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool],
    batch_size: int,
) -> list[list[int]]:
    """Return the greedy answer to the prompt `ids` [tokens] under each row's pruning, as token ids.

    cache: of the prompt without its last token, read without pruning; it is not changed. None reads the prompt in
    every row, pruned in phase "all".
    """
    answers: list[list[int]] = []
    for chunk in _chunks(rows, batch_size):
        size = len(chunk)
        with model.intervene(*_prunings(chunk, phase)):
            own = model.prefill(ids[:-1].expand(size, -1)) if cache is None else repeat(cache, size)
            last = ids[-1:].expand(size, 1)
            answers += model.greedy(own, last, max_new_tokens=max_new_tokens, stop=stop)
    return answers


@torch.no_grad()
def prose_losses(model: Model, ids: Tensor, rows: Sequence[Row], *, batch_size: int) -> list[float]:
    """Return the mean loss in nats per token on `ids` [tokens] under each row's pruning of all positions."""
    losses: list[float] = []
    for chunk in _chunks(rows, batch_size):
        with model.intervene(*_prunings(chunk, "all")):
            logits = model.hf(input_ids=ids.expand(len(chunk), -1).to(model.device), use_cache=False).logits
        for row in logits:  # one row at a time: the log-softmax of a vocabulary is large
            picked = row[:-1].float().log_softmax(-1).gather(-1, ids[1:, None].to(row.device))
            losses.append(-float(picked.double().mean()))
    return losses


def _prunings(rows: Sequence[Row], phase: Phase) -> list[PruneHeads]:
    return [
        PruneHeads(heads, fill=condition.fill, phase=phase, rows=[row])
        for row, (condition, heads) in enumerate(rows)
        if condition.fill is not None and heads
    ]


def _chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
