"""Which edges matter most? Every edge has a score: the expected change of the logit difference if it alone is cut.

A score is in logits. In percent of the gap between the prompts (`normalised`), it is positive where the edge supports
the answer. Edges are ranked by the size of the score ("magnitude") or by the score in percent ("support"), and the best
of them form a circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from probe.edges.graph import Edge, EdgeCircuit, Graph, Receiver, Sender
from probe.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

Ranking = Literal["magnitude", "support"]


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """The expected changes of the logit difference by edge, [receivers, senders], in logits; 0 where there is no edge.

    raw: mean over prompts. standard_error: over prompts, NaN for a single one. clean, corrupted [prompts]: the logit
    differences of the two prompts. method: the name and the settings of the method behind the scores.
    """

    graph: Graph
    raw: Tensor
    standard_error: Tensor
    clean: Tensor
    corrupted: Tensor
    method: str

    @property
    def gap(self) -> float:
        """Return the mean logit difference of the corrupted prompts less that of the clean ones, in logits."""
        return float((self.corrupted - self.clean).double().mean())

    @property
    def normalised(self) -> Tensor:
        """Return 100 raw / gap, [receivers, senders], in percent: positive where an edge supports the answer."""
        return 100 * self.raw / self.gap

    def of(self, edge: Edge | tuple[Sender, Receiver]) -> float:
        """Return the normalised score of an edge, in percent. Raises UsageError if there is no such edge."""
        return float(self.normalised[self.graph.place(edge)])

    def ranked(self, by: Ranking = "magnitude") -> Tensor:
        """Return the flat places of all edges, best first: by the size of the score, or by support of the answer."""
        if by not in ("magnitude", "support"):
            raise UsageError(f"edges are ranked by 'magnitude' or 'support', got {by!r}")
        places = self.graph.exists.flatten().nonzero()[:, 0]
        values = self.normalised.flatten()[places]
        values = values.abs() if by == "magnitude" else values
        return places[values.argsort(descending=True, stable=True)]

    def top(self, count: int, *, by: Ranking = "magnitude") -> list[Edge]:
        """Return the best edges; ties go to the earlier receiver, then sender."""
        senders = len(self.graph.senders)
        return [self.graph.edge(*divmod(place, senders)) for place in self.ranked(by)[:count].tolist()]

    def circuit(self, size: int, *, by: Ranking = "magnitude") -> EdgeCircuit:
        """Return the circuit of the `size` best edges. Raises UsageError for more edges than the graph has."""
        if not 0 <= size <= self.graph.edges:
            raise UsageError(f"the size of a circuit must be within 0..{self.graph.edges} edges, got {size}")
        return EdgeCircuit.of_places(self.graph, self.ranked(by)[:size])

    def to_df(self, *, top: int = 100, by: Ranking = "magnitude") -> pd.DataFrame:
        """Return one row for each of the best edges: sender, receiver, percent, raw, standard_error."""
        import pandas as pd

        edges, places = self.top(top, by=by), self.ranked(by)[:top]
        numbers = {"percent": self.normalised, "raw": self.raw, "standard_error": self.standard_error}
        return pd.DataFrame(
            {"sender": [str(edge.sender) for edge in edges], "receiver": [str(edge.receiver) for edge in edges]}
            | {name: values.flatten()[places].tolist() for name, values in numbers.items()}
        )


def joined(parts: Sequence[tuple[Tensor, EdgeScores]], *, prompts: int) -> EdgeScores:
    """Join the scores of batches, each given with the rows of the prompts that it held, to those of all prompts."""
    first = parts[0][1]
    clean, corrupted = torch.empty(prompts), torch.empty(prompts)
    mean = sum((len(rows) * part.raw.double() for rows, part in parts), torch.zeros(())) / prompts
    squares = torch.zeros_like(mean)
    for rows, part in parts:
        count = len(rows)
        clean[rows], corrupted[rows] = part.clean, part.corrupted
        within = part.standard_error.double().nan_to_num(0.0).square() * count * (count - 1)
        squares += within + count * (part.raw.double() - mean).square()
    error = (squares / (prompts - 1) / prompts).sqrt() if prompts > 1 else mean * torch.nan
    return EdgeScores(first.graph, mean.float(), error.float(), clean, corrupted, first.method)
