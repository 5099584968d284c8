"""Interventions: small frozen records that change attention, applied with `model.intervene(...)`."""

from probe.interventions.base import AttentionCall, Intervention
from probe.interventions.calibrate import CalibrateSinks
from probe.interventions.force import ForceAttention
from probe.interventions.outputs import Blend, HeadOutputs, PatchHeads, ScaleHeads
from probe.interventions.pattern import Pattern
from probe.interventions.prune import PruneHeads
from probe.interventions.redistribution import Redistribute

__all__ = [
    "AttentionCall",
    "Blend",
    "CalibrateSinks",
    "ForceAttention",
    "HeadOutputs",
    "Intervention",
    "PatchHeads",
    "Pattern",
    "PruneHeads",
    "Redistribute",
    "ScaleHeads",
]
