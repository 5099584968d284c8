"""The circuit of a task as edges: all of them scored from gradients, and how much of the answer the best ones keep.

A score, EAP's (Syed et al. 2023) or EAP-IG's (Hanna et al. 2024), is an estimate of what the logit difference does when
an edge alone carries what its sender writes in the corrupted prompt. Three things put the scores to the test:

    exact     the best edges patched one at a time, beside what their scores say
    curve     MIB's faithfulness (Mueller et al. 2025) of circuits of growing size, with its areas CPR and CMD: edges
              ranked by magnitude, and by how much they support the answer
    random    circuits of as many edges, drawn at random

Half of the prompts, drawn by the seed, give the scores; the curve is of the other half, which they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.circuits.tasks.registry import task as built
from probe.analyses.circuits.tasks.task import Task
from probe.edges.attribution import eap, eap_ig
from probe.edges.curves import PERCENTS, CircuitCurve, sizes_of
from probe.edges.graph import EdgeCircuit, Graph
from probe.edges.patched import edge_effects, logit_differences
from probe.edges.scores import EdgeScores, Ranking
from probe.edges.scores import joined as joined_scores
from probe.edges.wiring import Wiring
from probe.errors import UsageError
from probe.patching.effects import Effects, joined
from probe.saving.manifest import Recorder
from probe.saving.old_runs import RunFolder, Steps, carry_out, config_of
from probe.saving.results import Result
from probe.tokens import ids_hash

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model
    from probe.patching.pairs import Pairs

METHODS = ("eap-ig", "eap")
RANKINGS: tuple[Ranking, ...] = ("magnitude", "support")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does."""

    task: str = "ioi"
    prompts: int = 40
    """Pairs of prompts; half of them give the scores."""
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, such as the shots of Colored Objects."""
    method: str = "eap-ig"
    """Where scores come from: gradients between the prompts, or the clean prompt's."""
    steps: int = 5
    """Gradients that EAP-IG averages, at midpoints."""
    percents: tuple[float, ...] = PERCENTS
    """Sizes of circuits, of all edges."""
    draws: int = 3
    """Random circuits of each size."""
    exact: int = 20
    """How many of the best edges are patched by themselves."""
    batch: int = 10
    """Prompts that run at once; what one step of a run folder holds."""

    def __post_init__(self) -> None:
        for name, least in (("prompts", 4), ("steps", 1), ("draws", 0), ("exact", 0), ("batch", 1)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"--{name}: expected {least} or more, got {value}")
        if self.method not in METHODS:
            raise UsageError(f"--method: expected one of {', '.join(METHODS)}, got {self.method!r}")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Edges(Result):
    """The edges of a task's circuit.

    task, method: what was asked, and where scores come from. graph: layers, heads, kv_heads and parallel, which make a
    `probe.edges.graph.Graph`. raw, standard_error [receivers, senders]: the scores, in logits. scored_clean,
    scored_corrupted: LD of the prompts that gave them. clean, corrupted: LD of the prompts of the curve. percents,
    sizes: the circuits. difference [rankings, sizes, prompts], random [draws, sizes, prompts]: LD of circuits. exact:
    one row for each of the best edges: sender, receiver, percent, exact, exact_error (of the gap).
    """

    task: str
    method: str
    graph: dict[str, Any]
    raw: Tensor
    standard_error: Tensor
    scored_clean: Tensor
    scored_corrupted: Tensor
    clean: Tensor
    corrupted: Tensor
    percents: tuple[float, ...]
    sizes: tuple[int, ...]
    difference: Tensor
    random: Tensor
    exact: pd.DataFrame

    @cached_property
    def scores(self) -> EdgeScores:
        """The scores, which give circuits of any size: `found.scores.circuit(700)`."""
        counts = {name: self.graph[name] for name in ("layers", "heads", "kv_heads")}
        graph = Graph(**counts, parallel=tuple(self.graph["parallel"]))
        return EdgeScores(graph, self.raw, self.standard_error, self.scored_clean, self.scored_corrupted, self.method)

    def curve(self, by: Ranking = "magnitude") -> CircuitCurve:
        """Faithfulness by size, edges ranked by magnitude (as for CMD) or by support (as for CPR)."""
        if by not in RANKINGS:
            raise UsageError(f"edges rank by 'magnitude' or 'support', got {by!r}")
        return CircuitCurve(
            percents=self.percents,
            sizes=self.sizes,
            connected=tuple(len(self.scores.circuit(size, by=by).pruned()) for size in self.sizes),
            difference=self.difference[RANKINGS.index(by)],
            random=self.random,
            clean=self.clean,
            corrupted=self.corrupted,
            method=self.method,
            by=by,
        )

    @property
    def agreement(self) -> float:
        """Pearson correlation of the best edges' scores with their exact effects; NaN for fewer than three."""
        if len(self.exact) < 3:
            return float("nan")
        return float(torch.corrcoef(torch.tensor(self.exact[["percent", "exact"]].to_numpy().T))[0, 1])

    @property
    def findings(self) -> tuple[str, ...]:
        """The analysis in sentences."""
        size = f"{self.scores.graph.describe()}; scores by {self.method}"
        lines = [size]
        for by, area in (("magnitude", "CMD"), ("support", "CPR")):
            curve = self.curve(by)  # pyright: ignore[reportArgumentType]
            value = curve.cmd if area == "CMD" else curve.cpr
            control = curve.random_cmd if area == "CMD" else curve.random_cpr
            beside = f", random circuits {float(control.mean()):.3f}" if len(control) else ""
            reached = curve.smallest()
            kept = "no circuit smaller than the model keeps" if reached is None else f"{reached:g} % of the edges keep"
            lines.append(f"ranked by {by}: {kept} nine tenths of the answer; {area} {value:.3f}{beside}")
        if len(self.exact) >= 3:
            lines.append(
                f"scores and exact effects of the best {len(self.exact)} edges correlate at {self.agreement:.2f}"
            )
        return tuple(lines)

    def to_df(self) -> pd.DataFrame:
        """The best hundred edges by score."""
        return self.scores.to_df(top=min(100, self.scores.graph.edges))

    def figures(self) -> dict[str, Plot]:
        """magnitude, support: faithfulness by size. exact: the best edges' scores beside their exact effects."""
        from probe.analyses.circuits.edges.figures import curve_figure, exact_figure

        name = f"{self.task}, {self.manifest.name}"
        drawn = {by: curve_figure(self.curve(by), name=name) for by in RANKINGS}
        return drawn | ({"exact": exact_figure(self, name=name)} if len(self.exact) else {})


def run(
    model: Model, *, settings: Settings | None = None, task: Task | None = None,
    out: RunFolder | str | Path | None = None, progress: Progress | None = None,
) -> Edges:  # fmt: skip
    """The edges of a task's circuit. task: prompts of one's own, else those that settings name. out: a folder to
    continue from and to save in. progress: called with (steps done, steps planned). Raises UsageError."""
    chosen = settings or Settings()
    made = prompts(model, chosen) if task is None else task
    return carry_out(
        Edges,
        out,
        lambda: run_config(model, chosen, made),
        lambda folder: _Search(model, chosen, made, folder, progress).edges(),
    )


def prompts(model: Model, settings: Settings) -> Task:
    """The task that settings name."""
    return built(model, settings.task, prompts=settings.prompts, seed=settings.seed, **settings.options)


def run_config(model: Model, settings: Settings, task: Task) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "edges", asdict(settings) | {"pairs": task.pairs(model).hashes()})


class _Search:
    """One run: scores batch by batch, the best edges by themselves, then each curve; every step is kept."""

    def __init__(
        self, model: Model, settings: Settings, task: Task, folder: RunFolder | None, progress: Progress | None
    ) -> None:
        self.settings, self.task = settings, task
        self.pairs = task.pairs(model)
        if len(self.pairs) < 4:
            raise UsageError(f"expected at least 4 pairs, of which half give the scores, got {len(self.pairs)}")
        self.recorder = Recorder(
            model, analysis="edges", options=asdict(settings), seed=settings.seed,
            before=0.0 if folder is None else folder.seconds,
        )  # fmt: skip
        order = torch.randperm(len(self.pairs), generator=torch.Generator().manual_seed(settings.seed))
        self.scored, self.tested = (self.pairs.take(rows.sort().values) for rows in order.chunk(2))
        self.parts = list(self.scored.batches(settings.batch))
        self.wiring = Wiring(model)
        total = len(self.parts) * (2 if settings.exact else 1) + 1 + len(RANKINGS) + settings.draws
        self.steps = Steps(folder, total, progress)

    def edges(self) -> Edges:
        """The scores, put to the test."""
        settings, graph = self.settings, self.wiring.graph
        sizes = sizes_of(graph, settings.percents)
        scores = joined_scores(
            [(rows, self._scores(number, part)) for number, (rows, part) in enumerate(self.parts)],
            prompts=len(self.scored),
        )
        exact = self._exact(scores)
        ends = self._differences("ends", [EdgeCircuit.whole(graph), EdgeCircuit.empty(graph)])
        best = [self._differences(by, [scores.circuit(size, by=by).pruned() for size in sizes]) for by in RANKINGS]
        drawn = [
            self._differences(
                f"random {draw}",
                [EdgeCircuit.random(graph, size, seed=settings.seed + draw).pruned() for size in sizes],
            )
            for draw in range(settings.draws)
        ]
        shape = (len(sizes), len(self.tested))
        return Edges(
            manifest=self.recorder.manifest(prompts=[ids_hash(row) for row in self.pairs.clean]),
            task=self.task.name,
            method=scores.method,
            graph=asdict(graph),
            raw=scores.raw,
            standard_error=scores.standard_error,
            scored_clean=scores.clean,
            scored_corrupted=scores.corrupted,
            clean=ends[0],
            corrupted=ends[1],
            percents=tuple(settings.percents),
            sizes=tuple(sizes),
            difference=torch.stack(best),
            random=torch.stack(drawn) if drawn else torch.empty(0, *shape),
            exact=exact,
        )

    def _scores(self, number: int, part: Pairs) -> EdgeScores:
        """Scores of all edges from one batch of prompts."""
        exists = self.wiring.graph.exists

        def compute() -> dict[str, Any]:
            if self.settings.method == "eap":
                found = eap(self.wiring, part)
            else:
                found = eap_ig(self.wiring, part, steps=self.settings.steps)
            tables = {name: getattr(found, name)[exists].tolist() for name in ("raw", "standard_error")}
            sides = {name: getattr(found, name).tolist() for name in ("clean", "corrupted")}
            return {"method": found.method} | tables | sides

        kept = self.steps(f"scores {number}", compute)
        raw, error = torch.zeros(exists.shape), torch.zeros(exists.shape)
        raw[exists], error[exists] = torch.tensor(kept["raw"]), torch.tensor(kept["standard_error"])
        clean, corrupted = torch.tensor(kept["clean"]), torch.tensor(kept["corrupted"])
        return EdgeScores(self.wiring.graph, raw, error, clean, corrupted, kept["method"])

    def _exact(self, scores: EdgeScores) -> pd.DataFrame:
        """The best edges by magnitude, each patched by itself."""
        edges = scores.top(min(self.settings.exact, scores.graph.edges))
        if not edges:
            return pd.DataFrame(columns=["sender", "receiver", "percent", "exact", "exact_error"])
        parts = []
        for number, (rows, part) in enumerate(self.parts):

            def compute(part: Pairs = part) -> dict[str, Any]:
                found = edge_effects(self.wiring, part, edges)
                return {name: getattr(found, name).tolist() for name in ("patched", "clean", "corrupted")}

            kept = self.steps(f"exact {number}", compute)
            parts.append((rows, Effects(tuple(edges), **{name: torch.tensor(kept[name]) for name in kept})))
        effects = joined(parts, prompts=len(self.scored))
        return pd.DataFrame(
            {
                "sender": [str(edge.sender) for edge in edges],
                "receiver": [str(edge.receiver) for edge in edges],
                "percent": [float(scores.normalised[scores.graph.place(edge)]) for edge in edges],
                "exact": effects.normalised.tolist(),
                "exact_error": effects.normalised_error.tolist(),
            }
        )

    def _differences(self, name: str, circuits: Sequence[EdgeCircuit]) -> Tensor:
        """LD of the prompts of the curve, [circuits, prompts], with each circuit's edges kept."""
        return torch.tensor(self.steps(name, lambda: logit_differences(self.wiring, self.tested, circuits).tolist()))
