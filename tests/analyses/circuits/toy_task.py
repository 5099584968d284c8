"""The toy's task as a file of pairs: `tests.probe.toy_circuit` says which of its heads does what.

Two tokens without a meaning stand in front of END, so that there are tokens that are no answer.
"""

from __future__ import annotations

import json
from pathlib import Path

A, B, FILLER, END = "<s>", "</s>", "<u>", "w3"


def pair(io: str, subject: str) -> dict[str, object]:
    """One pair: IO S S and END; S2 is exchanged in the corrupted prompt."""
    return {
        "clean": f"{io} {subject} {subject} {FILLER} {FILLER} {END}",
        "corrupted": f"{io} {subject} {io} {FILLER} {FILLER} {END}",
        "good": f" {io}", "bad": f" {subject}", "choices": [f" {io}", f" {subject}"],
        "roles": {"right": io, "wrong 1": [subject, 1], "wrong 2": [subject, 2]},
    }  # fmt: skip


def write_toy_task(path: Path) -> Path:
    """Write both prompts of the toy, twice each."""
    path.write_text("".join(json.dumps(pair(*names)) + "\n" for names in ((A, B), (B, A), (A, B), (B, A))))
    return path
