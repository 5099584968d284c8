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
    """A model and its prompts, ready for knock-outs: the mean of `score(heads)` is F(heads)."""

    def __init__(self, model: Model, pairs: Pairs, *, fill: str = "corrupted", batch: int = 20) -> None:
        if fill not in FILLS:
            raise UsageError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
        self.model, self.fill = model, fill
        self._parts = list(pairs.batches(batch))
        self._size = len(pairs)
        self._fills = [self._filled(part) for _, part in self._parts]
        if fill == "mean":
            _group_means(self._fills, [part for _, part in self._parts])

    def _filled(self, part: Pairs) -> dict[int, Tensor]:
        if self.fill == "zero":
            return {layer: torch.zeros(()) for layer in range(self.model.n_layers)}
        return dict(self.model.head_outputs(part.corrupted, padding=part.padding).z)

    @torch.no_grad()
    def score(self, heads: Iterable[Head]) -> Tensor:
        """Return logit differences [prompts] with only these heads in place."""
        kept = torch.zeros(self.model.n_layers, self.model.n_heads, dtype=torch.bool)
        for head in heads:
            kept[tuple(head)] = True
        found = torch.empty(self._size)
        for (rows, part), fill in zip(self._parts, self._fills, strict=True):
            with self.model.intervene(KnockOut(kept, fill)):
                logits = self.model.logits(part.clean, padding=part.padding, logits_to_keep=1)
            found[rows] = part.logit_difference(logits).float().cpu()
        return found


def _group_means(fills: Sequence[Mapping[int, Tensor]], parts: Sequence[Pairs]) -> None:
    """Give each prompt, in place, the mean over its group and length, taken over all batches."""
    kinds = [
        kind for part in parts for kind in zip(part.groups or ("",) * len(part), part.lengths.tolist(), strict=True)
    ]
    for layer in fills[0]:
        rows = [z for fill in fills for z in fill[layer]]
        for kind in set(kinds):
            alike = [z[:, -kind[1] :] for z, other in zip(rows, kinds, strict=True) if other == kind]
            mean = torch.stack(alike).double().mean(0)
            for own in alike:
                own.copy_(mean)
