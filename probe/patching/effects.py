"""What patching did: the logit difference with each node patched, beside those of the clean and corrupted prompts."""

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
    """Logit differences, in logits: patched [nodes, prompts], clean and corrupted [prompts].

    nodes: what was patched, one for each row: a Head, an MLP, or a node with its position.
    """

    nodes: tuple[object, ...]
    patched: Tensor
    clean: Tensor
    corrupted: Tensor

    def __post_init__(self) -> None:
        if self.patched.shape != (len(self.nodes), len(self.clean)) or self.clean.shape != self.corrupted.shape:
            raise UsageError(
                f"expected [{len(self.nodes)} nodes, {len(self.clean)} prompts], got {list(self.patched.shape)}"
            )

    @property
    def raw(self) -> Tensor:
        """Mean change of the logit difference, [nodes], in logits."""
        return (self.patched - self.clean).double().mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of `raw` over prompts, [nodes]; NaN for a single prompt."""
        return (self.patched - self.clean).double().std(1) / len(self.clean) ** 0.5

    @property
    def gap(self) -> float:
        """Mean logit difference of the corrupted prompts less that of the clean ones: the scale of `normalised`."""
        return float((self.corrupted - self.clean).double().mean())

    @property
    def normalised(self) -> Tensor:
        """100 raw / gap, [nodes], in percent: positive where a node supports the answer of the clean prompt.

        A quotient of means, for a single prompt's gap can be tiny.
        """
        return 100 * self.raw / self.gap

    @property
    def normalised_error(self) -> Tensor:
        """The standard error in the unit of `normalised`, the gap taken as exact."""
        return 100 * self.standard_error / abs(self.gap)

    def of(self, node: object) -> float:
        """The normalised effect of one node."""
        return float(self.normalised[self.nodes.index(node)])

    def top(self, count: int) -> list[object]:
        """The nodes with the largest effects, whatever their sign; ties go to the earlier."""
        order = self.raw.abs().argsort(descending=True, stable=True)
        return [self.nodes[index] for index in order[:count].tolist()]

    def to_df(self) -> pd.DataFrame:
        """One row for each node, largest effect first: node, percent, percent_error, raw, standard_error."""
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
    """Effects of all prompts from those of batches, with the rows that each batch held."""
    first = parts[0][1]
    patched = torch.empty(len(first.nodes), prompts)
    clean, corrupted = torch.empty(prompts), torch.empty(prompts)
    for rows, part in parts:
        patched[:, rows] = part.patched
        clean[rows], corrupted[rows] = part.clean, part.corrupted
    return Effects(first.nodes, patched, clean, corrupted)
