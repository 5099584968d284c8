"""The contract of every intervention in the table: what the command line, manifests and the app rely on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import probe.interventions
from probe import Head
from probe.interventions import Blend, CalibrateSinks, HeadOutputs, Intervention
from probe.interventions.table import TABLE, Needs

HEADS = [Head(0, 1), Head(1, 2)]
OUTPUTS = HeadOutputs({layer: torch.zeros(1, 4, 5, 12) for layer in (0, 1)})
EXAMPLES = {
    "prune": {"heads": HEADS, "fill": "mean", "phase": "decode", "rows": [0], "reference": OUTPUTS},
    "scale": {"heads": HEADS, "gates": torch.tensor([0.5, 2.0])},
    "patch": {"heads": HEADS, "source": OUTPUTS, "positions": [1, 2]},
    "force": {"heads": HEADS, "queries": [3], "keys": [0, 1], "weights": [0.25, 0.75]},
    "redistribute": {"heads": HEADS, "sources": [0], "recipients": [1, 2], "kept": 0.4, "queries": [3]},
    "calibrate": {
        "heads": HEADS, "beta": 0.3, "rule": "absolute", "threshold": 0.1, "min_rows": 2, "spare": "first flagged",
        "prefix": 9,
    },
    "blend": {"edit": CalibrateSinks(HEADS), "gates": torch.zeros(2, 4)},
}  # fmt: skip
"""Every field of every intervention, none at its default."""


def test_every_public_intervention_is_in_the_table():
    public = {getattr(probe.interventions, name) for name in dir(probe.interventions)}
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Intervention)}
    assert {TABLE[name].load() for name in TABLE} == kinds - {Intervention}
    assert EXAMPLES.keys() == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_it_is_a_frozen_dataclass_whose_every_field_is_documented(name):
    kind, entry = TABLE[name].load(), TABLE[name]
    made = kind(**EXAMPLES[name])
    assert [field.name for field in dataclasses.fields(kind)] == list(entry.settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(entry.settings)), None)
    for text in entry.settings.values():
        assert text[0].isupper() and text[-1] != "." and len(text) > 10, text
    assert "z" in entry.formula or "p" in entry.formula


@pytest.mark.parametrize("name", TABLE)
def test_it_needs_what_its_steps_change(name):
    """Operands, pattern and outputs are what `before`, `repattern` and `after` are overridden for."""
    made = TABLE[name].load()(**EXAMPLES[name])
    acting = [made, made.running()] + ([made.edit, made.edit.running()] if isinstance(made, Blend) else [])
    steps = {"before": Needs.OPERANDS, "repattern": Needs.PATTERN, "after": Needs.OUTPUTS}
    changed = {
        need
        for step, need in steps.items()
        if any(getattr(type(each), step) is not getattr(Intervention, step) for each in acting)
    }
    assert set(TABLE[name].needs) - {Needs.PROMPT} == changed
    assert (Needs.PROMPT in TABLE[name].needs) == (type(made) is not Blend and made.running() is not made)


@pytest.mark.parametrize("name", TABLE)
def test_it_describes_itself_as_json_by_its_fields(name):
    described = TABLE[name].load()(**EXAMPLES[name]).describe()
    assert described["intervention"] == TABLE[name].load().__name__
    assert list(described)[1:] == list(TABLE[name].settings)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    if "heads" in described:
        assert described["heads"] == ["L0H1", "L1H2"]


def test_the_table_is_read_without_torch():
    code = "import sys, probe.interventions.table as t; assert t.TABLE; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
