"""The run folders on the packaged model that several files of tests look at.

The folder is shared by all processes of a test run, so each is measured once: who comes second reads it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from probe import Model
from probe.analyses.circuits import edges, search

SEARCH = search.Settings(task="ioi", prompts=8, stages=2, draws=1, batch_size=8)
EDGES = edges.Settings(prompts=8, steps=2, percents=(0.5, 2.0, 100.0), draws=1, exact=4, batch_size=3)


def shared_run(package: Any, model: Model, settings: Any, factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return the result and the folder of a run."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / package.__name__.rsplit(".", 1)[-1]
    with FileLock(f"{folder}.lock"):
        return package.run(model, settings, out=folder), folder
