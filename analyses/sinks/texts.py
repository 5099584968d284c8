"""Texts to look for sinks in: four short ones written for this purpose, and files of the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.analyses.texts.files import read_text


@dataclass(frozen=True)
class Prose:
    """A text with a name."""

    name: str
    text: str


TEXTS = tuple(
    Prose(name, read_text(Path(__file__).with_name("prose") / f"{name}.txt").strip())
    for name in ("memo", "story", "essay", "letter")
)


def of_prompts(prompts: Sequence[str]) -> tuple[Prose, ...]:
    """Return a text for each prompt of the command line, named "prompt 1", "prompt 2" and so on."""
    return tuple(Prose(f"prompt {number}", prompt.strip()) for number, prompt in enumerate(prompts, start=1))


def from_files(paths: Sequence[Path]) -> tuple[Prose, ...]:
    """Return a text for each file, named after the file; raise UsageError for one that holds no UTF-8 text."""
    return tuple(Prose(path.name, read_text(path).strip()) for path in paths)
