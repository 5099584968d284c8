"""Circuits of heads put to the test: every other head is knocked out, and the logit difference says what is left.

Wang et al. 2022, section 4. F(C) is the mean logit difference with every head outside C knocked out, MLPs never.

    faithfulness   F(C) / F(M), M the whole model
    completeness   |F(C - K) - F(M - K)| for subsets K of C: small where nothing outside C does what K does
    minimality     |F(C - K - v) - F(C - K)| / F(M) for each head v, K the other heads of its stage

A score depends on what a knocked-out head writes instead (Miller et al. 2024 find the IOI circuit's faithfulness
anywhere from below 0 to above 1), so what was written is part of every record: "corrupted", the head's z in the
corrupted prompt at the same position; "mean", its mean over the corrupted prompts of the same group at the same
distance from END; "zero".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs

FILLS = ("corrupted", "mean", "zero")


@dataclass(frozen=True, eq=False)
class KnockOut(Intervention):
    """Replace z of all heads outside `kept` [layers, heads] by `fill`: by layer, [prompts, heads, tokens, dim]."""

    kept: Tensor
    fill: Mapping[int, Tensor]

    @property
    def heads_named(self) -> tuple[Head, ...]:
        return tuple(Head(*head) for head in (~self.kept).nonzero().tolist())

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        kept = self.kept[call.layer].to(output.device)
        if bool(kept.all()):
            return output
        return torch.where(kept[:, None, None], output, self.fill[call.layer].to(output))


class Bench:
    """A model and its prompts, ready for knock-outs: `score(kept)` is F, [prompts]."""

    def __init__(self, model: Model, pairs: Pairs, *, fill: str = "corrupted", batch: int = 20) -> None:
        if fill not in FILLS:
            raise UsageError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
        self.model, self.fill = model, fill
        self._parts = list(pairs.batches(batch))
        self._size = len(pairs)
        self._fills = [self._filled(part) for _, part in self._parts]
        if fill == "mean":
            self._fills = _group_means(self._fills, [part for _, part in self._parts])

    def _filled(self, part: Pairs) -> dict[int, Tensor]:
        if self.fill == "zero":
            return {layer: torch.zeros(()) for layer in range(self.model.n_layers)}
        return dict(self.model.head_outputs(part.corrupted, padding=part.padding).z)

    @torch.no_grad()
    def score(self, kept: Tensor | Iterable[Head]) -> Tensor:
        """Logit differences [prompts] with only these heads left in place: heads, or [layers, heads] bool."""
        if not isinstance(kept, Tensor):
            kept = self.mask(kept)
        found = torch.empty(self._size)
        for (rows, part), fill in zip(self._parts, self._fills, strict=True):
            with self.model.intervene(KnockOut(kept, fill)):
                logits = self.model.logits(part.clean, padding=part.padding, logits_to_keep=1)
            found[rows] = part.logit_difference(logits).float().cpu()
        return found

    def mask(self, heads: Iterable[Head]) -> Tensor:
        """[layers, heads], True at these."""
        mask = torch.zeros(self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        for head in heads:
            mask[tuple(head)] = True
        return mask

    @property
    def all(self) -> Tensor:
        """Every head."""
        return torch.ones(self.model.n_layers, self.model.n_heads, dtype=torch.bool)


def _group_means(fills: Sequence[Mapping[int, Tensor]], parts: Sequence[Pairs]) -> list[dict[int, Tensor]]:
    """Each prompt's fill replaced by the mean over its group and length, wherever in the batches its members are."""
    kinds = [
        (group, int(length))
        for part in parts
        for group, length in zip(part.groups or ("",) * len(part), _lengths(part), strict=True)
    ]
    found: list[dict[int, Tensor]] = [{} for _ in parts]
    sizes = [len(part) for part in parts]
    for layer in fills[0]:
        sums: dict[tuple[str, int], Tensor] = {}
        rows = [z for fill in fills for z in fill[layer]]
        for kind, z in zip(kinds, rows, strict=True):
            own = z[:, -kind[1] :].double()
            sums[kind] = sums[kind] + own if kind in sums else own
        counts = {kind: kinds.count(kind) for kind in sums}
        mean = {kind: (total / counts[kind]).float() for kind, total in sums.items()}
        filled = []
        for kind, z in zip(kinds, rows, strict=True):
            row = z.clone()
            row[:, -kind[1] :] = mean[kind].to(z)
            filled.append(row)
        left = iter(filled)
        for part, size in enumerate(sizes):
            found[part][layer] = torch.stack(list(islice(left, size)))
    return found


def _lengths(part: Pairs) -> list[int]:
    if part.padding is None:
        return [part.clean.shape[1]] * len(part)
    return part.padding.sum(1).tolist()
