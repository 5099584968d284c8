"""The interventions room holds the changes of attention: small frozen records, applied with `model.intervene(...)`.

An intervention edits no map: the kernels carry its edits. `probe.interventions.table` lists all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.frame.lazy import lazy

if TYPE_CHECKING:
    from probe.interventions.base import Intervention as Intervention
    from probe.interventions.calibrate import CalibrateSinks as CalibrateSinks
    from probe.interventions.call import AttentionCall as AttentionCall
    from probe.interventions.force import ForceAttention as ForceAttention
    from probe.interventions.outputs import Blend as Blend
    from probe.interventions.outputs import HeadOutputs as HeadOutputs
    from probe.interventions.outputs import PatchHeads as PatchHeads
    from probe.interventions.outputs import ScaleHeads as ScaleHeads
    from probe.interventions.pattern import Pattern as Pattern
    from probe.interventions.prune import PruneHeads as PruneHeads
    from probe.interventions.redistribution import Redistribute as Redistribute

# imported on first use, so that the table of interventions can be read without torch
_HOMES = {
    "AttentionCall": "call",
    "Blend": "outputs",
    "CalibrateSinks": "calibrate",
    "ForceAttention": "force",
    "HeadOutputs": "outputs",
    "Intervention": "base",
    "PatchHeads": "outputs",
    "Pattern": "pattern",
    "PruneHeads": "prune",
    "Redistribute": "redistribution",
    "ScaleHeads": "outputs",
}

__getattr__ = lazy(__name__, **_HOMES)


def __dir__() -> list[str]:
    return sorted(_HOMES)
