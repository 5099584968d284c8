"""Where the heads look from END: the attention weight that the last token's row puts on each role of the prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.heads import Head
from probe.kernels.contract import Request

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs

FIRST, OTHER = "first token", "elsewhere"
"""Names of two more roles: the prompt's first token, where parked heads look, and all tokens without a role."""
END = "END"


@dataclass(frozen=True, eq=False)
class EndAttention:
    """Weights of the rows of END, averaged over prompts: mass [layers, heads, roles]; a token may have several roles.

    roles: names in the order of the last axis; the last two are "first token" and "elsewhere".
    """

    mass: Tensor
    roles: tuple[str, ...]

    def of(self, head: Head | tuple[int, int]) -> dict[str, float]:
        """Return the weight of each role under one head."""
        return dict(zip(self.roles, self.mass[tuple(head)].tolist(), strict=True))

    def to_df(self) -> pd.DataFrame:
        """Return one row for each head, with one column for each role."""
        layers, count, _ = self.mass.shape
        heads = [Head(*place) for place in product(range(layers), range(count))]
        return pd.DataFrame(
            [{"layer": head.layer, "head": head.head, "name": str(head)} | self.of(head) for head in heads]
        )


@torch.no_grad()
def end_attention(model: Model, pairs: Pairs, *, batch: int = 16) -> EndAttention:
    """Return the END rows of the clean prompts over their roles, the first token and all other tokens.

    The weights are sums over key sets inside attention; no attention map is built.
    """
    names = [name for name in pairs.roles if name != END]
    total = torch.zeros(model.n_layers, model.n_heads, len(names) + 2, dtype=torch.float64)
    for _, part in pairs.batches(batch):
        count, tokens = part.clean.shape
        sets = torch.zeros(count, 1, len(names) + 2, tokens, dtype=torch.bool)
        rows = torch.arange(count)
        for place, name in enumerate(names):
            sets[rows, 0, place, part.roles[name]] = True
        first = torch.zeros(count, dtype=torch.int64) if part.padding is None else part.padding.int().argmax(1)
        sets[rows, 0, -2, first] = True
        sets[:, 0, -1] = ~sets[:, 0, :-1].any(1)
        with model.recording(Request(sets=sets.to(model.device))) as recording:
            model.logits(part.clean, padding=part.padding, logits_to_keep=1)
        mass = recording.stats(queries=range(tokens - 1, tokens)).mass
        assert mass is not None
        total += mass[:, :, :, 0].double().sum(1)
    return EndAttention((total / len(pairs)).float(), (*names, FIRST, OTHER))
