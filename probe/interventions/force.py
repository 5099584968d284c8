"""Forced attention: the rows of some queries pinned to given keys with given weights (the repair of a circuit).

Merullo et al. 2024, section 5: the rows of the inhibition and mover heads at the last token are set by hand. The row
becomes p_ij = w_j on the keys and 0 elsewhere, whatever query and key say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.interventions.base import AttentionCall, OnHeads
from probe.interventions.pattern import Pattern
from probe.kernels.edits import Pinned

ABOVE_SINKS = 20.0
"""How far a forced row stands above the largest learned sink logit, which then takes 2e-9 of it."""


@dataclass(frozen=True)
class ForceAttention(OnHeads):
    """Pin the rows of `queries` (positions) to `keys` (positions), with `weights` that sum to one; None is equal ones.

    queries, keys and weights are for every text of a batch alike, or lists of one list for each text. Positions count
    padding. Raises UsageError, when it runs, for a key that the query cannot see.
    """

    queries: Sequence[int] | Sequence[Sequence[int]]
    keys: Sequence[int] | Sequence[Sequence[int]]
    weights: Sequence[float] | Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "queries", _texts("queries", self.queries))
        object.__setattr__(self, "keys", _texts("keys", self.keys))
        texts = {len(self.queries), len(self.keys)}
        if self.weights is not None:
            object.__setattr__(self, "weights", _texts("weights", self.weights))
            texts.add(len(self.weights))
        if len(texts - {1}) > 1:
            raise UsageError(f"queries, keys and weights are for {sorted(texts)} texts: give one list for each text")
        if len({len(queries) for queries in self.queries}) > 1:  # pyright: ignore[reportArgumentType]
            raise UsageError("force as many queries in each text of the batch")
        for keys, weights in self._rows(max(texts)):
            if len(set(keys)) < len(keys):
                raise UsageError(f"keys must differ, got {list(keys)}")
            if len(weights) != len(keys) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
                raise UsageError(f"weights must be one for each key and sum to one, got {list(weights)}")

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        heads = self.heads_in(call.layer)
        if not heads:
            return
        texts = max(len(self.queries), len(self.keys), len(self.weights or ()))
        if texts not in (1, call.query.shape[0]):
            raise UsageError(f"forced attention is given for {texts} texts and the batch has {call.query.shape[0]}")
        rows = [[q for q in queries if q in call.queries] for queries in _for_each(texts, self.queries)]
        if len({len(queries) for queries in rows}) > 1:
            raise UsageError("forced queries of a batch must all come in the same pass")
        if not rows[0]:
            return
        log = torch.full((texts, 1, len(rows[0]), len(call.keys)), -math.inf)
        top = 0.0 if call.sinks is None else float(call.sinks[heads].max()) + ABOVE_SINKS
        for text, (queries, (keys, weights)) in enumerate(zip(rows, self._rows(texts), strict=True)):
            for query in queries:
                for key in keys:
                    _check_visible(call, text if texts > 1 else None, query, key)
            columns = [key - call.keys.start for key in keys]
            log[text, 0, :, columns] = torch.tensor(weights, dtype=torch.float64).log().float() + top
        device = call.query.device
        own = torch.tensor(rows, device=device) - call.queries.start
        pattern.edit(heads, Pinned(own, log.to(device)))

    def _rows(self, texts: int) -> list[tuple[Sequence[int], Sequence[float]]]:
        """Keys and weights of each text."""
        keys = _for_each(texts, self.keys)
        equal = [[1 / len(of)] * len(of) for of in keys]
        return list(zip(keys, equal if self.weights is None else _for_each(texts, self.weights), strict=True))


def _texts(name: str, given: Sequence) -> tuple[tuple, ...]:
    """One tuple for each text, or for all."""
    nested = [isinstance(item, Sequence) for item in given]
    rows = tuple(map(tuple, given)) if given and all(nested) else (tuple(given),)
    if not all(rows) or (any(nested) and not all(nested)):
        raise UsageError(f"{name} must be a list, or one list for each text, and not empty, got {given}")
    if name != "weights" and min(min(row) for row in rows) < 0:
        raise UsageError(f"{name} must be positions from 0 on, got {given}")
    return rows


def _for_each(texts: int, rows: Sequence) -> Sequence:
    return list(rows) * texts if len(rows) == 1 else rows


def _check_visible(call: AttentionCall, text: int | None, query: int, key: int) -> None:
    """Raises UsageError where the model's mask hides the key from the query, in this text or (None) in any."""
    mask = call.mask
    hidden = key not in call.keys
    hidden |= mask.causal and key > query
    hidden |= mask.window is not None and query - key >= mask.window
    if not hidden:
        texts = slice(None) if text is None else slice(text, text + 1)
        row, column = query - call.queries.start, key - call.keys.start
        for seen in (
            None if mask.keys is None else mask.keys[texts, column],
            None if mask.pairs is None else _of(mask.pairs, texts)[:, :, row, column],
        ):
            hidden |= seen is not None and not bool(seen.all())
    if hidden:
        raise UsageError(
            f"query {query} cannot be forced to attend to key {key}: layer {call.layer} does not let it see that key"
        )


def _of(tensor: Tensor, texts: slice) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[texts]
