"""The units of scored edges: the scores batch by batch, the best edges' exact effects, and each curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits import costs
from probe.analyses.circuits.edges.claims import CLAIMS
from probe.analyses.circuits.edges.result import Edges
from probe.analyses.circuits.edges.settings import RANKINGS, Settings
from probe.analyses.circuits.pairs_analysis import PairsAnalysis, sides
from probe.edges.attribution import eap, eap_ig
from probe.edges.curves import sizes_of
from probe.edges.graph import EdgeCircuit
from probe.edges.patched import edge_effects, logit_differences
from probe.edges.scores import EdgeScores
from probe.edges.scores import joined as joined_scores
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.frame.analysis import Cost, Facts, Measured, Records, Unit
from probe.frame.run import runner

if TYPE_CHECKING:
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.saving.manifest import Manifest


class EdgeSearch(PairsAnalysis[Settings, Edges]):
    """The search of a task's edges; `parts` are batches of the half of the pairs that gives the scores."""

    name, claims = "circuit edges", CLAIMS
    _joined: EdgeScores | None = None

    def prepare(self, model: Model) -> None:
        super().prepare(model)
        if len(self.pairs) < 4:
            raise UsageError(f"expected at least 4 pairs, of which half give the scores, got {len(self.pairs)}")
        order = torch.randperm(len(self.pairs), generator=torch.Generator().manual_seed(self.settings.seed))
        self.scored, self.tested = (self.pairs.take(rows.sort().values) for rows in order.chunk(2))
        self.parts = list(self.scored.batches(self.settings.batch_size))
        self.wiring = Wiring(model)
        self.sizes = sizes_of(self.wiring.graph, self.settings.percents)

    def describe(self) -> str:
        return f"{super().describe()}, {self.settings.method}"

    def expected(self, facts: Facts) -> int:
        batches = len(self.parts) * (2 if self.settings.exact else 1)
        return batches + 1 + len(RANKINGS) + self.settings.draws

    def estimate(self, model: Model, speed: Speed) -> Cost:
        return costs.edges(model, speed, self.settings, self.pairs)

    def plan(self, facts: Facts, records: Records) -> list[Unit]:
        found = [*self.batches("scores"), Unit("ends")]
        found += [Unit(f"random {draw}", {"draw": draw}) for draw in range(self.settings.draws)]
        if any(unit.name not in records for unit in self.batches("scores")):
            return found
        scores = self._scores(records)
        best = [list(scores.graph.place(edge)) for edge in scores.top(self._tried)]
        found += self.batches("exact", edges=best) if best else []
        return found + [Unit(by, {"ranked": scores.ranked(by).tolist()[: max(self.sizes)]}) for by in RANKINGS]

    def measure(self, model: Model, unit: Unit) -> Measured:
        kind, graph = unit.name.split()[0], self.wiring.graph
        if "batch" in unit.arguments:
            part = self.parts[unit.arguments["batch"]][1]
            if kind == "exact":
                edges = [graph.edge(*place) for place in unit.arguments["edges"]]
                return self.measured(sides(edge_effects(self.wiring, part, edges)), part)
            if self.settings.method == "eap":
                found = eap(self.wiring, part)
            else:
                found = eap_ig(self.wiring, part, steps=self.settings.steps)
            data = {name: getattr(found, name)[graph.exists].tolist() for name in ("raw", "standard_error")}
            data |= {name: getattr(found, name).tolist() for name in ("clean", "corrupted")}
            return self.measured({"method": found.method} | data, part)
        if kind == "ends":
            circuits = [EdgeCircuit.whole(graph), EdgeCircuit.empty(graph)]
        elif kind == "random":
            seed = self.settings.seed + unit.arguments["draw"]
            circuits = [EdgeCircuit.random(graph, size, seed=seed).pruned() for size in self.sizes]
        else:
            best = unit.arguments["ranked"]
            circuits = [EdgeCircuit.of_places(graph, best[:size]).pruned() for size in self.sizes]
        return self.measured(logit_differences(self.wiring, self.tested, circuits).tolist(), self.tested)

    def reduce(self, model: Model, records: Records, manifest: Manifest) -> Edges:
        scores = self._scores(records)
        clean, corrupted = torch.tensor(records["ends"])
        drawn = [torch.tensor(records[f"random {draw}"]) for draw in range(self.settings.draws)]
        return Edges(
            manifest=replace(manifest, bos=self.bos),
            task=self.task.name,
            method=scores.method,
            graph=asdict(self.wiring.graph),
            raw=scores.raw,
            standard_error=scores.standard_error,
            scored_clean=scores.clean,
            scored_corrupted=scores.corrupted,
            clean=clean,
            corrupted=corrupted,
            percents=tuple(self.settings.percents),
            sizes=tuple(self.sizes),
            difference=torch.stack([torch.tensor(records[by]) for by in RANKINGS]),
            random=torch.stack(drawn) if drawn else torch.empty(0, len(self.sizes), len(self.tested)),
            exact=self._exact(scores, records),
        )

    @property
    def _tried(self) -> int:
        return min(self.settings.exact, self.wiring.graph.edges)

    def _scores(self, records: Records) -> EdgeScores:
        """Return the scores of all edges, joined from the records of the batches."""
        if self._joined is None:
            parts = [
                (rows, self._batch(records[unit.name]))
                for unit, (rows, _) in zip(self.batches("scores"), self.parts, strict=True)
            ]
            self._joined = joined_scores(parts, prompts=len(self.scored))
        return self._joined

    def _batch(self, record: Mapping[str, Any]) -> EdgeScores:
        graph = self.wiring.graph

        def table(name: str) -> Tensor:
            values = torch.zeros(graph.exists.shape)
            values[graph.exists] = torch.tensor(record[name])
            return values

        clean, corrupted = torch.tensor(record["clean"]), torch.tensor(record["corrupted"])
        return EdgeScores(graph, table("raw"), table("standard_error"), clean, corrupted, record["method"])

    def _exact(self, scores: EdgeScores, records: Records) -> pd.DataFrame:
        """Return the best edges by magnitude with what each does when it is patched by itself."""
        rows = scores.to_df(top=self._tried)[["sender", "receiver", "percent"]]
        if rows.empty:
            return pd.DataFrame(columns=[*rows.columns, "exact", "exact_error"])
        effects = self.effects(records, "exact", scores.top(self._tried))
        return rows.assign(exact=effects.normalised.tolist(), exact_error=effects.normalised_error.tolist())


run = runner(EdgeSearch, Settings)
