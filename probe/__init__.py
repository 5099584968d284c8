"""probe: which attention heads of a transformer do something, what they do, and what happens when they are changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.capture import Capture as Capture
    from probe.errors import ProbeError as ProbeError
    from probe.errors import UsageError as UsageError
    from probe.heads import Head as Head
    from probe.interventions import PruneHeads as PruneHeads
    from probe.kernels.contract import Band as Band
    from probe.kernels.contract import Mask as Mask
    from probe.kernels.contract import Request as Request
    from probe.models import Model as Model
    from probe.models import load as load
    from probe.models import wrap as wrap
    from probe.recording import AttentionStats as AttentionStats
    from probe.results import Result as Result
    from probe.tokens import Tokens as Tokens

# Imported on first use, so that `import probe` and the command line's --help stay instant.
_HOMES = {
    "AttentionStats": "probe.recording",
    "Band": "probe.kernels.contract",
    "Capture": "probe.capture",
    "Head": "probe.heads",
    "Mask": "probe.kernels.contract",
    "Model": "probe.models",
    "ProbeError": "probe.errors",
    "PruneHeads": "probe.interventions",
    "Request": "probe.kernels.contract",
    "Result": "probe.results",
    "Tokens": "probe.tokens",
    "UsageError": "probe.errors",
    "load": "probe.models",
    "wrap": "probe.models",
}

__all__ = [
    "AttentionStats",
    "Band",
    "Capture",
    "Head",
    "Mask",
    "Model",
    "ProbeError",
    "PruneHeads",
    "Request",
    "Result",
    "Tokens",
    "UsageError",
    "load",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
