"""Tasks: pairs of prompts that differ in one respect, whose answers say whether a model has noticed it."""

from __future__ import annotations

NAMES = ("ioi", "colored-objects", "capitals", "subject-verb", "greater-than")
"""The tasks that are built in; any other is a JSONL file. Here, so that a help text needs no torch."""
