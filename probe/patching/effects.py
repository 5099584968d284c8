"""How large is the effect of a patch? The change of the logit difference, in logits and in percent of the prompts' gap.

With LD_patched the logit difference with a node patched, and LD_clean and LD_corrupted those of the two prompts,

    raw = mean(LD_patched - LD_clean),    gap = mean(LD_corrupted - LD_clean),    normalised = 100 raw / gap,

with means over prompts. A node with a normalised effect of 100 carries the whole difference between the prompts. The
quotient is one of means, because the gap of a single prompt can be tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Effects:
    """The logit differences of a patching run, in logits: patched [nodes, prompts], clean and corrupted [prompts].

    nodes: the node of each row, such as a Head, an MLP, or a node with its position.
    """

    nodes: tuple[object, ...]
    patched: Tensor
    clean: Tensor
    corrupted: Tensor

    def __post_init__(self) -> None:
        if self.patched.shape != (len(self.nodes), len(self.clean)) or self.clean.shape != self.corrupted.shape:
            raise UsageError(
                f"patched must be [{len(self.nodes)} nodes, {len(self.clean)} prompts], got {list(self.patched.shape)}"
            )

    @property
    def raw(self) -> Tensor:
        """Return the mean change of the logit difference, [nodes], in logits."""
        return (self.patched - self.clean).double().mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Return the standard error of `raw` over prompts, [nodes], in logits; NaN for a single prompt."""
        return (self.patched - self.clean).double().std(1) / len(self.clean) ** 0.5

    @property
    def gap(self) -> float:
        """Return the mean logit difference of the corrupted prompts less that of the clean ones, in logits."""
        return float((self.corrupted - self.clean).double().mean())

    @property
    def normalised(self) -> Tensor:
        """Return 100 raw / gap, [nodes], in percent: positive where a node supports the answer of the clean prompt."""
        return 100 * self.raw / self.gap

    @property
    def normalised_error(self) -> Tensor:
        """Return the standard error in percent of the gap, which counts as exact here."""
        return 100 * self.standard_error / abs(self.gap)

    def of(self, node: object) -> float:
        """Return the normalised effect of one node, in percent."""
        return float(self.normalised[self.nodes.index(node)])

    def top(self, count: int) -> list[object]:
        """Return the nodes with the largest effects of either sign; ties go to the earlier node."""
        order = self.raw.abs().argsort(descending=True, stable=True)
        return [self.nodes[index] for index in order[:count].tolist()]

    def to_df(self) -> pd.DataFrame:
        """Return one row for each node, largest effect first: node, percent, percent_error, raw, standard_error."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "node": [str(node) for node in self.nodes],
                "percent": self.normalised,
                "percent_error": self.normalised_error,
                "raw": self.raw,
                "standard_error": self.standard_error,
            }
        )
        return table.sort_values("raw", key=abs, ascending=False, kind="stable", ignore_index=True)


def joined(parts: Sequence[tuple[Tensor, Effects]], *, prompts: int) -> Effects:
    """Join the effects of batches, each given with the rows of the prompts that it held, to those of all prompts."""
    first = parts[0][1]
    patched = torch.empty(len(first.nodes), prompts)
    clean, corrupted = torch.empty(prompts), torch.empty(prompts)
    for rows, part in parts:
        patched[:, rows] = part.patched
        clean[rows], corrupted[rows] = part.clean, part.corrupted
    return Effects(first.nodes, patched, clean, corrupted)
