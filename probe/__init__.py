"""probe measures which attention heads of a transformer do something, what they do, and what follows if they change."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.doors.wrapping import wrap as wrap
    from probe.engine.capture import Capture as Capture
    from probe.engine.recording import AttentionStats as AttentionStats
    from probe.errors import ProbeError as ProbeError
    from probe.errors import UsageError as UsageError
    from probe.heads import Head as Head
    from probe.interventions import CalibrateSinks as CalibrateSinks
    from probe.interventions import ForceAttention as ForceAttention
    from probe.interventions import PatchHeads as PatchHeads
    from probe.interventions import PruneHeads as PruneHeads
    from probe.interventions import Redistribute as Redistribute
    from probe.interventions import ScaleHeads as ScaleHeads
    from probe.kernels.contract import Band as Band
    from probe.kernels.contract import Mask as Mask
    from probe.kernels.contract import Request as Request
    from probe.models import Model as Model
    from probe.models import load as load
    from probe.saving.opening import Run as Run
    from probe.saving.opening import open_run as open
    from probe.saving.results import Result as Result
    from probe.tokens import Tokens as Tokens

# Imported on first use, so that `import probe` and the command line's --help stay instant.
_HOMES = {
    "AttentionStats": "probe.engine.recording",
    "Band": "probe.kernels.contract",
    "CalibrateSinks": "probe.interventions",
    "Capture": "probe.engine.capture",
    "ForceAttention": "probe.interventions",
    "Head": "probe.heads",
    "Mask": "probe.kernels.contract",
    "Model": "probe.models",
    "PatchHeads": "probe.interventions",
    "ProbeError": "probe.errors",
    "PruneHeads": "probe.interventions",
    "Redistribute": "probe.interventions",
    "Request": "probe.kernels.contract",
    "Result": "probe.saving.results",
    "Run": "probe.saving.opening",
    "ScaleHeads": "probe.interventions",
    "Tokens": "probe.tokens",
    "UsageError": "probe.errors",
    "load": "probe.models",
    "open": "probe.saving.opening",
    "wrap": "probe.doors.wrapping",
}

__all__ = [
    "AttentionStats",
    "Band",
    "CalibrateSinks",
    "Capture",
    "ForceAttention",
    "Head",
    "Mask",
    "Model",
    "PatchHeads",
    "ProbeError",
    "PruneHeads",
    "Redistribute",
    "Request",
    "Result",
    "Run",
    "ScaleHeads",
    "Tokens",
    "UsageError",
    "load",
    "open",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), {"open": "open_run"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
