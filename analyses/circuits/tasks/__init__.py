"""Tasks: pairs of prompts that differ in one respect, and answers that show whether a model has noticed it."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from probe.errors import UsageError

NAMES = ("ioi", "colored-objects", "capitals", "subject-verb", "greater-than")
"""The built-in tasks; any other task is a JSONL file. They are listed here so that a help text needs no torch."""


def check_name(name: str | Path) -> None:
    """Raise UsageError for a name that is neither a built-in task nor a path."""
    if str(name) in NAMES or isinstance(name, Path) or Path(name).exists() or Path(name).suffix:
        return
    if any(each in name for each in (os.sep, os.altsep) if each):
        return
    close = get_close_matches(name, NAMES, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(f"unknown task {name!r}{guess}: expected {', '.join(NAMES)}, or the path of a JSONL file")
