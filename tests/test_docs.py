"""The Python blocks of docs/, executed as they stand there."""

import re
import runpy
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["circuits.md", "front-doors.md", "interventions.md", "patching.md", "sinks.md", "stats.md"]
)
def test_the_blocks_of_a_page_are_one_program_that_runs(page, monkeypatch, tmp_path, llama):
    """On the model that the suite has loaded already; in a file, because nnsight reads the source of its blocks."""
    import probe

    monkeypatch.setattr(probe, "load", {"llama": llama}.__getitem__, raising=False)
    code = "\n".join(BLOCK.findall((DOCS / page).read_text(encoding="utf-8")))
    assert code.count("assert ") >= 5
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    with torch.no_grad():  # which restores what the program sets
        runpy.run_path(str(program))
