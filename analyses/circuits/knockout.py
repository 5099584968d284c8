"""Knock-outs, which test a circuit of heads: every other head is knocked out, and the logit difference is measured.

Wang et al. 2022, section 4. F(C) is the mean logit difference with every head outside C knocked out; MLPs stay.

    faithfulness   (F(C) - F(nothing)) / span, with span = F(M) - F(nothing) and M the whole model
    completeness   |F(C - K) - F(M - K)| / span for subsets K of C: small where nothing outside C does what K does
    minimality     (F(C) - F(C - v)) / span for each head v that acts on the logits

The authors take F(C) / F(M) for faithfulness, and for minimality the best of several subsets K that v is taken out
with. A score depends on what a knocked-out head writes instead: with other choices Miller et al. 2024 measure values
from below 0 to above 1 for the faithfulness of the IOI circuit. The settings of a run therefore name the choice:
"corrupted" is the head's z in the corrupted prompt at the same position; "mean" is its mean over the corrupted prompts
of the same group at the same distance from END; "zero" is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.analyses.circuits.search.settings import FILLS
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs


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
    """A model and its prompts, ready for knock-outs: `score(kept)` returns logit differences, whose mean is F(kept)."""

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
        """Return logit differences [prompts] with only the kept heads in place; a mask is [layers, heads]."""
        if not isinstance(kept, Tensor):
            kept = self.mask(kept)
        found = torch.empty(self._size)
        for (rows, part), fill in zip(self._parts, self._fills, strict=True):
            with self.model.intervene(KnockOut(kept, fill)):
                logits = self.model.logits(part.clean, padding=part.padding, logits_to_keep=1)
            found[rows] = part.logit_difference(logits).float().cpu()
        return found

    def mask(self, heads: Iterable[Head]) -> Tensor:
        """Return a mask [layers, heads] that is True at the heads."""
        mask = torch.zeros(self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        for head in heads:
            mask[tuple(head)] = True
        return mask

    @property
    def all(self) -> Tensor:
        """Return the mask of every head."""
        return torch.ones(self.model.n_layers, self.model.n_heads, dtype=torch.bool)


def _group_means(fills: Sequence[Mapping[int, Tensor]], parts: Sequence[Pairs]) -> list[dict[int, Tensor]]:
    """Return fills in which each prompt has the mean over its group and length, taken over all batches."""
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
