"""Does a circuit work again if its heads are made to look at the right tokens? Their rows of attention are set by hand.

Merullo et al. 2024 repair a circuit in this way: at the last token, the rows of the inhibition and mover
heads are set. The row of query i becomes p_ij = w_j on the given keys and 0 elsewhere, whatever the scores are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probe.errors import UsageError
from probe.interventions.base import OnHeads
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern
from probe.kernels.edits import Pinned

ABOVE_SINKS = 20.0
"""A forced row stands this far above the largest learned sink logit, which then takes 2e-9 of the row."""


@dataclass(frozen=True)
class ForceAttention(OnHeads):
    """Pin the rows of `queries` (positions) to `keys` (positions), with `weights` that sum to one (None: equal).

    queries, keys and weights hold for every text of a batch, or are lists with one list for each text. Positions count
    padding. When it runs, it raises UsageError for a key that the query cannot see.
    """

    queries: Sequence[int] | Sequence[Sequence[int]]
    keys: Sequence[int] | Sequence[Sequence[int]]
    weights: Sequence[float] | Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "keys", "weights"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _texts(name, given))
        texts = {len(self.queries), len(self.keys), len(self.weights or self.keys)}
        if len(texts - {1}) > 1:
            raise UsageError(
                f"queries, keys and weights are given for {sorted(texts)} texts: give each of them one list, or one "
                "list for each text"
            )
        if len({len(queries) for queries in self.queries}) > 1:  # pyright: ignore[reportArgumentType]
            raise UsageError(
                "the texts have different numbers of queries: force the same number of queries in each text"
            )
        for keys, weights in self._rows(max(texts)):
            if len(set(keys)) < len(keys):
                raise UsageError(f"keys must differ from one another, got {list(keys)}")
            if len(weights) != len(keys) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
                raise UsageError(f"weights must be one for each key and sum to one, got {list(weights)}")

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        heads = self.heads_in(call.layer)
        if not heads:
            return
        texts = max(len(self.queries), len(self.keys), len(self.weights or ()))
        if texts not in (1, call.query.shape[0]):
            raise UsageError(
                f"ForceAttention is given for {texts} texts and the batch has {call.query.shape[0]}: give one list for "
                "each text of the batch"
            )
        rows = [[q for q in queries if q in call.queries] for queries in _for_each(texts, self.queries)]
        if len({len(queries) for queries in rows}) > 1:
            raise UsageError(
                "the forced queries of some texts come in this pass and those of others do not: run all of them in one "
                "pass, or text by text"
            )
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
    """Return one tuple for each text, or a single one for all."""
    nested = [isinstance(item, Sequence) for item in given]
    rows = tuple(map(tuple, given)) if given and all(nested) else (tuple(given),)
    if not all(rows) or (any(nested) and not all(nested)):
        raise UsageError(f"{name} must be a list, or a list of one list for each text, and none empty, got {given}")
    if name != "weights" and min(min(row) for row in rows) < 0:
        raise UsageError(f"{name} must be positions from 0 on, got {given}")
    return rows


def _for_each(texts: int, rows: Sequence) -> Sequence:
    return list(rows) * texts if len(rows) == 1 else rows


def _check_visible(call: AttentionCall, text: int | None, query: int, key: int) -> None:
    """Raise UsageError if the model's mask hides the key from the query, in this text or (None) in any."""
    mask = call.mask
    hidden = key not in call.keys or (mask.causal and key > query)
    hidden |= mask.window is not None and query - key >= mask.window
    if not hidden:
        row, column = query - call.queries.start, key - call.keys.start
        keys = None if mask.keys is None else mask.keys[:, column]
        pairs = None if mask.pairs is None else mask.pairs[:, :, row, column]
        for seen in (keys, pairs):  # of each text of the batch, or of all of them alike
            if seen is not None:
                hidden |= not bool((seen if text is None or len(seen) == 1 else seen[text]).all())
    if hidden:
        raise UsageError(
            f"query {query} cannot be forced to attend to key {key}: the mask of layer {call.layer} hides that key; "
            "name an earlier key that is no padding"
        )
