"""The analyses, one package each, and the table that lists them.

The command line, reports and the app read `TABLE` and know no analysis by name. An entry is the words of the command
and the class that carries it out; the `settings.py` beside that class holds its `Settings`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TABLE: dict[str, str] = {
    "heads": "probe.analyses.heads.analysis:HeadAnalysis",
    "intervene act": "probe.analyses.act.analysis:ActAnalysis",
    "sinks": "probe.analyses.sinks.analysis:SinkAnalysis",
    "stats": "probe.analyses.stats.analysis:Stats",
    "circuit": "probe.analyses.circuits.search.analysis:Search",
    "circuit edges": "probe.analyses.circuits.edges.analysis:EdgeSearch",
    "circuit reuse": "probe.analyses.circuits.reuse.analysis:Comparison",
    "circuit repair": "probe.analyses.circuits.repair.analysis:Repairing",
}
"""Words of the command -> module:class of the analysis. Adding an analysis is a folder and a line here."""


GROUPS: dict[str, str] = {"intervene": "Change a model's attention and measure what follows"}
"""First words of commands that are no analysis themselves -> what the commands below them do."""


def settings_of(name: str) -> Any:
    """Return the settings class of an analysis; imports the standard library alone."""
    module, _, _ = TABLE[name].partition(":")
    return import_module(f"{module.rpartition('.')[0]}.settings").Settings


def analysis_of(name: str) -> Any:
    """Return the class of an analysis."""
    module, _, kind = TABLE[name].partition(":")
    return getattr(import_module(module), kind)
