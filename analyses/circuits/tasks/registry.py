"""Tasks by name, or by the path of a JSONL file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks import check_name
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
    """Return the prompts of a built-in task, or of a JSONL file (at most `prompts` of its lines).

    options: those of the task's function, such as order and corruption of "ioi". Raises UsageError for an unknown name
    or option, for a file that cannot be read, and for a tokenizer that does not fit the task.
    """
    if prompts < 1:
        raise UsageError(f"expected at least one prompt, got {prompts}: raise --prompts")
    check_name(name)
    builder = BUILDERS.get(str(name))
    accepted = [] if builder is None else list(inspect.signature(builder).parameters)[3:]
    wrong = [option for option in options if option not in accepted]
    if wrong:
        takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
        raise UsageError(f"{name} has no option {wrong[0]!r}: {takes}")
    if builder is None:
        return from_file(model, name, prompts=prompts, seed=seed)
    return builder(model, prompts=prompts, seed=seed, **options)
