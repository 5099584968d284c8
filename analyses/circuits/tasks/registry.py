"""Tasks by name, or by the path of a JSONL file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks import NAMES
from probe.analyses.circuits.tasks.capitals import capitals
from probe.analyses.circuits.tasks.colored_objects import colored_objects
from probe.analyses.circuits.tasks.files import from_file
from probe.analyses.circuits.tasks.greater_than import greater_than
from probe.analyses.circuits.tasks.ioi import ioi
from probe.analyses.circuits.tasks.subject_verb import subject_verb
from probe.analyses.circuits.tasks.task import Task
from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.models import Model

BUILDERS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "colored-objects": colored_objects,
    "capitals": capitals,
    "subject-verb": subject_verb,
    "greater-than": greater_than,
}


def task(model: Model, name: str | Path, *, prompts: int = 40, seed: int = 0, **options: object) -> Task:
    """The prompts of a built-in task, or of a JSONL file (at most `prompts` of its lines).

    options: those of the task's own function, such as order and corruption of "ioi". Raises UsageError with one line
    for an unknown name or option, an unreadable file, or a tokenizer that does not fit.
    """
    if prompts < 1:
        raise UsageError(f"expected at least one prompt, got {prompts}: raise --prompts")
    builder = BUILDERS.get(str(name))
    if builder is None and not _is_path(name):
        close = get_close_matches(str(name), NAMES, n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"unknown task {str(name)!r}{guess}: expected {', '.join(NAMES)}, or the path of a JSONL file")
    accepted = [] if builder is None else list(inspect.signature(builder).parameters)[3:]
    wrong = [option for option in options if option not in accepted]
    if wrong:
        takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
        raise UsageError(f"{name} has no option {wrong[0]!r}: {takes}")
    if builder is None:
        return from_file(model, name, prompts=prompts, seed=seed)
    return builder(model, prompts=prompts, seed=seed, **options)


def _is_path(name: str | Path) -> bool:
    """Whether a name can only be meant as a file."""
    if isinstance(name, Path) or Path(name).exists():
        return True
    return Path(name).suffix != "" or any(each in name for each in (os.sep, os.altsep) if each)
