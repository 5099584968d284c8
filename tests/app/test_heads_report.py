"""How a validation is told, on numbers written by hand."""

import pandas as pd
import pytest

from probe.analyses.heads.validation import CLOSED_BOOK, NEEDLES, PROSE, Validation
from probe.app.cli import heads_report
from probe.heads import Head
from probe.saving.manifest import Manifest


def checked(phase: str) -> Validation:
    """A validation with k = 5 and zero output only; a cell's value is its place in the table, over ten."""
    rows, place = [], 0
    for task in (NEEDLES, CLOSED_BOOK, PROSE):
        for group in ("none", "top", "random", "same layers"):
            k, fill = (0, None) if group == "none" else (5, "zero")
            low, high = (place - 1) / 10, (place + 1) / 10
            row = {"task": task, "group": group, "k": k, "fill": fill, "value": place / 10, "low": low, "high": high}
            rows.append(row | {"rise": 0.0, "rise_low": 0.0, "rise_high": 0.0, "samples": 3, "heads": float(k)})
            place += 1
    manifest = Manifest(
        analysis="validation", name="llama", model="m", revision=None, weights_hash="", dtype="float32", device="cpu",
        hardware="", attention="", seed=0, bos=None, prompts=(), options={}, interventions=(), versions={}, 
        measuring=0.0, outside=0.0, passes=None,
        peak_memory=0, peak_device_memory=None, command="", created="",
    )  # fmt: skip
    return Validation(
        manifest=manifest, conditions=pd.DataFrame(rows), details=pd.DataFrame({"generated": ["42"]}),
        ranked=(Head(1, 2),), ks=(5,), fills=("zero",), phase=phase,
    )  # fmt: skip


@pytest.mark.parametrize("phase, words", [("decode", "while answering"), ("all", "while reading and answering")])
def test_every_condition_is_printed_in_its_place(phase, words, capsys):
    heads_report._print_validation(checked(phase))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Held-out needles answered, heads pruned {words}:"
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "heads fill top random same layers",
        "none .00 [-.10, .10]",
        "5 zero .10 [.00, .20] .20 [.10, .30] .30 [.20, .40]",
    ]
    assert lines[5].startswith("Closed-book") and lines[8].split()[2] == ".50"
    assert lines[10] == "Loss on prose in nats per token, heads pruned everywhere:"
    assert " ".join(lines[-1].split()) == "5 zero .90 [.80, 1.00] 1.00 [.90, 1.10] 1.10 [1.00, 1.20]"
    assert max(map(len, lines)) <= 80


def test_json_leaves_the_rows_per_sample_to_the_folder():
    content = heads_report._without_details(checked("decode"))
    assert "details" not in content and len(content["conditions"]) == 12
    assert content["ranked"] == [{"layer": 1, "head": 2}]
