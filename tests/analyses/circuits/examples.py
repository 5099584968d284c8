"""Synthetic results of every circuit analysis, which together give each claim each verdict."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import torch

from probe.analyses.circuits.edges.result import Edges
from probe.analyses.circuits.repair.forcing import HEADS, NONE, REPAIR, RIGHT, TOKENS, Answers, compared
from probe.analyses.circuits.repair.result import Repair
from probe.analyses.circuits.reuse.result import Reuse
from probe.analyses.circuits.search.result import Circuit
from probe.analyses.circuits.search.trials import planned, scored
from probe.edges.graph import Graph
from probe.heads import Head
from probe.saving.manifest import Manifest, manifest_of
from probe.saving.results import Result

HEADS_OF_A_LAYER, LAYERS, PROMPTS = 8, 4, 12


def manifest(analysis: str, **options: object) -> Manifest:
    return manifest_of(None, analysis=analysis, options={"fill": "corrupted", **options}, prompts=["00"] * PROMPTS)


def spread(mean: float, size: float = 0.2) -> torch.Tensor:
    """Logit differences of the prompts with this mean."""
    return mean + torch.linspace(-size, size, PROMPTS)


def circuit(
    kept: float = 3.0, random: float = 0.5, *, first: int = 0, size: float = 0.2, task: str = "ioi",
    half: int | None = None,
) -> Circuit:  # fmt: skip
    """A circuit whose five heads begin at number `first`; it keeps a LD of `kept` of 4, random ones keep `random`.

    half: the half of the layers, 0 or 1, in which the other heads have their small effects; None for all layers.
    """
    heads = [Head(layer, head) for layer in range(LAYERS) for head in range(HEADS_OF_A_LAYER)]
    percent = [0.1 * (place % 3 if half is None else place // 16 == half) for place in range(len(heads))]
    for place in range(5):
        percent[first + place] = 50.0 - 8 * place
    effects = pd.DataFrame(
        {
            "stage": "logits", "layer": [head.layer for head in heads], "head": [head.head for head in heads],
            "name": [str(head) for head in heads], "percent": percent, "percent_error": 0.5,
            "raw": [-0.08 * value for value in percent], "standard_error": 0.04,
            "kept": [value > 10 for value in percent],
            "role": ["mover" if value > 10 else "other" for value in percent],
        }
    )  # fmt: skip
    own = [heads[first + place] for place in range(5)]
    trials = planned({"logits": own}, heads, draws=2, seed=0)
    levels = {"whole": 4.0, "nothing": 0.0, "circuit": kept, "random 0": random, "random 1": random}
    names = {name for trial in trials for name in trial.knock_outs}
    scores = {name: spread(levels.get(name, 1.0), -size if name == "nothing" else size).tolist() for name in names}
    tests, test_ld = scored(trials, scores)
    attention = effects[["layer", "head", "name"]].assign(IO=0.4, S1=0.1, S2=0.1)
    behaviour: dict[str, float | int | None] = {"prompts": PROMPTS, "ld": 4.0, "top1": 0.75}
    return Circuit(
        manifest=manifest("circuit"), task=task, effects=effects, receivers={"logits": ["logits"]}, attention=attention,
        tests=tests, test_ld=test_ld, behaviour=behaviour, gap=-8.0, gap_error=0.1, facts={},
    )  # fmt: skip


def no_gap() -> Circuit:
    """A search on prompts between which the model sees no difference."""
    found = circuit(size=20.0)
    return Circuit(
        **{name: value for name, value in found.__dict__.items() if name not in ("gap", "gap_error")},
        gap=-0.1, gap_error=0.2,
    )  # fmt: skip


def circuits() -> list[Result]:
    return [circuit(), circuit(kept=0.1, random=1.5), no_gap()]


def edges(
    best: float, random: float, *, size: float = 0.2, exact: float = 1.0, count: int = 12, gap: float = 0.2
) -> Edges:
    """Edges whose circuits keep `best` of a LD of 4 at half the edges; exact effects are `exact` times the scores."""
    graph = Graph(2, 4, 2, (False, False))
    raw = torch.zeros(graph.exists.shape)
    raw[graph.exists] = torch.linspace(-1.0, 0.2, graph.edges)
    percent = torch.linspace(5, 60, count)
    noise = 40 * torch.tensor([(-1.0) ** place for place in range(count)]) * (1 - abs(exact))
    sizes = (graph.edges // 2, graph.edges)

    def curve(mean: float) -> torch.Tensor:
        return torch.stack([spread(4 * mean, size), spread(4.0, size)])

    rows = {"sender": "L0H0", "receiver": "logits", "percent": percent.tolist()}
    return Edges(
        manifest=manifest("circuit edges"), task="ioi", method="EAP", graph=asdict(graph), raw=raw,
        standard_error=0.1 * raw.abs(), scored_clean=spread(4.0, gap), scored_corrupted=spread(-4.0, -gap),
        clean=spread(4.0, size), corrupted=spread(0.0, size).flip(0), percents=(50.0, 100.0), sizes=sizes,
        difference=torch.stack([curve(best), curve(best)]), random=torch.stack([curve(random), curve(random)]),
        exact=pd.DataFrame(rows | {"exact": (exact * percent + noise).tolist(), "exact_error": 1.0}),
    )  # fmt: skip


def edge_circuits() -> list[Result]:
    return [edges(0.95, 0.1), edges(0.1, 0.2, exact=-1.0), edges(0.95, 0.1, size=20.0, exact=0.75, count=6)]


def reuses() -> list[Result]:
    """All heads shared, all shared with the control alone, and half shared with both tasks."""

    def made(second: int, control: int) -> Reuse:
        runs = {"first": circuit(), "second": circuit(first=second, task="colored-objects"), "again": circuit()}
        return Reuse(manifest=manifest("circuit reuse"), k=5, control=circuit(first=control, task="sv"), **runs)

    apart = {"first": circuit(half=0), "second": circuit(first=16, half=1), "again": circuit(half=0)}
    disjoint = Reuse(manifest=manifest("circuit reuse"), k=16, control=circuit(half=0), **apart)
    return [made(0, 16), disjoint, made(3, 5)]


def repaired(before: int, after: int, controls: int, prompts: int = 60) -> Repair:
    """A repair after which `after` of the prompts are right."""

    def answers(right: int) -> Answers:
        best = (torch.arange(prompts) >= right).long()
        return Answers(best, best + 7)

    rows = []
    for condition, right in ((NONE, before), (REPAIR, after), (RIGHT, 0), (TOKENS, controls), (HEADS, controls)):
        row = compared(answers(right), answers(before), torch.full((prompts,), 7))
        rows.append({"condition": condition, "draw": 0, "heads": "L3H1"} | row)
    return Repair(
        manifest=manifest("circuit repair"), source="ioi", target="colored-objects", heads=(Head(3, 1),), chance=1 / 3,
        conditions=pd.DataFrame(rows),
    )  # fmt: skip


def repairs() -> list[Result]:
    return [repaired(20, 50, 21), repaired(40, 5, 40), repaired(20, 25, 22)]


EXAMPLES = {
    "circuit": circuits, "circuit edges": edge_circuits, "circuit reuse": reuses, "circuit repair": repairs,
}  # fmt: skip
