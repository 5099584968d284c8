"""The interventions room holds the changes of attention: small frozen records, applied with `model.intervene(...)`.

An intervention says in its docstring which formula it applies, and edits no map: the kernels carry its edits.
"""

from probe.interventions.base import Intervention
from probe.interventions.calibrate import CalibrateSinks
from probe.interventions.call import AttentionCall
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
