"""Settings of the search of edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probe.analyses.circuits.task_settings import TaskSettings
from probe.frame.settings import setting

METHODS = ("eap-ig", "eap")
RANKINGS = ("magnitude", "support")


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """Through which edges does a model's answer to a task come?

    TASK is ioi (the default), colored-objects, capitals, subject-verb or greater-than; FILE is a JSON Lines file of
    pairs.

    An edge carries what one head or MLP writes to what another reads. The command scores every edge from gradients,
    which gives an estimate of what the logit difference does if the edge carries what its sender writes in the
    corrupted prompt. It patches the best edges one at a time to check their scores. Then it runs circuits of 0.1 to
    100 percent of the edges on prompts that the scores have not seen, beside random circuits of the same sizes. The
    output is the best edges, MIB's faithfulness at each size, and its areas CPR and CMD.
    """

    presets: ClassVar = {
        "quick": {"prompts": 8, "steps": 2, "percents": (0.5, 2.0, 100.0), "draws": 1, "exact": 5},
        "report": {"draws": 5},
    }

    prompts: int = setting(40, "Pairs of prompts; half give the scores, the other half the curve", least=4)
    method: str = setting(
        "eap-ig", "Gradients that give the scores: eap-ig averages over prompts between corrupted and clean, eap takes "
        "the clean prompt alone", choices=METHODS,
    )  # fmt: skip
    steps: int = setting(5, "Number of gradients that EAP-IG averages, at midpoints", least=1)
    percents: tuple[float, ...] = setting(
        (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0), "Sizes of circuits, in percent of all edges",
        above=0, most=100,
    )  # fmt: skip
    draws: int = setting(3, "Random circuits of each size", least=0, adds=True)
    exact: int = setting(20, "Best edges that are patched one at a time", least=0)
    batch_size: int = setting(10, "Pairs that run at once, and that one unit of the run folder holds", least=1)
