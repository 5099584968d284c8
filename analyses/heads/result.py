"""The result of `probe heads`: up to four results in one, each saved in a folder of its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from probe.analyses.heads.catalogue import HeadCatalogue
from probe.analyses.heads.claims import CLAIMS
from probe.analyses.heads.comparison import Comparison
from probe.analyses.heads.retrieval import RetrievalHeads
from probe.analyses.heads.validation import Validation
from probe.frame.findings import Finding
from probe.frame.scores import HeadScore
from probe.frame.tables import Table
from probe.saving.results import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from probe.figures import Plot


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Heads(Result):
    """All scores of every head, and what the run made of them; what was not asked for is None.

    retrieval: the needle questions. catalogue: every score, the retrieval score first. validation: what pruning the
    best heads breaks. comparison: the scores beside those of another run.
    """

    retrieval: RetrievalHeads | None
    catalogue: HeadCatalogue
    validation: Validation | None
    comparison: Comparison | None

    def to_df(self) -> pd.DataFrame:
        """Return one row per head with every score, best first."""
        return self.catalogue.to_df()

    def figures(self) -> dict[str, Plot]:
        """Return no plots: each belongs to a part, and its page stands in the part's folder."""
        return {}

    def plot(self, name: str | None = None) -> Figure:
        """Return the plot of that name of any part, or the main one of the first part, as a notebook shows it."""
        parts = self.parts().values()
        return next((part for part in parts if name is None or name in part.figures()), self.catalogue).plot(name)

    def tables(self) -> dict[str, Table]:
        """Return the tables of all parts."""
        return {name: table for part in self.parts().values() for name, table in part.tables().items()}

    def summary(self) -> tuple[str, ...]:
        """Return the sentences of all parts."""
        return tuple(sentence for part in self.parts().values() for sentence in part.summary())

    def findings(self) -> tuple[Finding, ...]:
        """Return every claim; those of parts that were not asked for are not applicable."""
        found = {finding.name: finding for part in self.parts().values() for finding in part.findings()}
        return tuple(found.get(claim.name) or self.finding(claim, None) for claim in CLAIMS)

    def head_scores(self) -> dict[str, HeadScore]:
        """Return every score; the retrieval score with the unit of its variant."""
        return self.catalogue.head_scores() | (self.retrieval.head_scores() if self.retrieval is not None else {})
