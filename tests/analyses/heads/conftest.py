"""A run that several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.analyses import heads
from probe.analyses.heads.result import Heads

SHORT = {"kinds": ("retrieval", "induction"), "lengths": (300,)}


@pytest.fixture(scope="session")
def short_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "short"


@pytest.fixture(scope="session")
def short_run(llama, short_folder) -> Heads:
    """Six needles in 300 tokens and the induction scores of the packaged model."""
    calls = []
    found = heads.run(llama, **SHORT, out=short_folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 7) for done in range(1, 8)]
    return found
