"""Tasks from JSONL files: each line has a clean and a corrupted prompt, and the answers that tell them apart.

    {"clean": "Then, Mary and John went to the store. John gave a drink to",
     "corrupted": "Then, Mary and John went to the store. Mary gave a drink to",
     "good": " Mary", "bad": " John", "choices": [" Mary", " John"],
     "roles": {"IO": "Mary", "S1": ["John", 1], "S2": ["John", 2]}, "group": "store"}

on one line. choices, roles and group are optional. good and bad follow the clean prompt as they are written, so they
begin with a space where one comes between. choices begin with good. A role is a piece of the clean prompt that occurs
once, or [piece, k] for its k-th occurrence, counted from 1; the last token that covers it has the role. END is added.
All lines have the same roles and the same number of choices.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.circuits.tasks.drawing import Span, last_character
from probe.analyses.circuits.tasks.task import Task
from probe.errors import ProbeError, UsageError
from probe.patching.pairs import PromptPair, pairs

if TYPE_CHECKING:
    from probe.models import Model

NEEDED = ("clean", "corrupted", "good", "bad")
FIELDS = (*NEEDED, "choices", "roles", "group")
END = "END"


def from_file(model: Model, path: Path | str, *, prompts: int = 40, seed: int = 0) -> Task:
    """Return the pairs of a file, checked with the model's tokenizer; of more than `prompts`, the seed draws a sample.

    Raises UsageError that names file, line and field.
    """
    path = Path(path)
    rows = read(path)
    for number, pair in rows:
        try:
            pairs(model, [pair])
        except ProbeError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(prompts, len(rows))))
    return Task(
        name=path.stem,
        prompts=tuple(rows[row][1] for row in chosen),
        seed=seed,
        options={"path": str(path)},
        facts={"lines": len(rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )


def read(path: Path | str) -> list[tuple[int, PromptPair]]:
    """Return line numbers and pairs of a file. Raises UsageError that names file, line and field."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read the task file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the task file {path} is not UTF-8 text (byte {error.start})") from None
    found: list[tuple[int, PromptPair]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = _pair(line)
            if found:
                _alike(pair, found[0][1])
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        found.append((number, pair))
    if not found:
        raise UsageError(f"the task file {path} is empty: expected one JSON object a line")
    return found


def write(prompts: Iterable[PromptPair], path: Path | str) -> None:
    """Write pairs as a file from which `read` returns the same pairs; END is left out where it is the last token."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for pair in prompts:
            file.write(json.dumps(_row(pair), ensure_ascii=False) + "\n")


def _pair(line: str) -> PromptPair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"expected a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise UsageError(f"expected a JSON object with {', '.join(NEEDED)}, got {type(row).__name__}")
    unknown = [name for name in row if name not in FIELDS]
    if unknown:
        raise UsageError(f'"{unknown[0]}" is no field of a pair, expected {", ".join(FIELDS)}')
    for name in NEEDED:
        if not isinstance(row.get(name), str) or not row[name]:
            raise UsageError(f'"{name}" must be a text that is not empty, got {json.dumps(row.get(name))}')
    group = row.get("group", "")
    if not isinstance(group, str):
        raise UsageError(f'"group" must be a text, got {json.dumps(group)}')
    if row["good"] == row["bad"]:
        raise UsageError(f'"good" and "bad" must differ, got {json.dumps(row["good"])} twice')
    return PromptPair(
        clean=row["clean"],
        corrupted=row["corrupted"],
        good=row["good"],
        bad=row["bad"],
        choices=_choices(row),
        roles=dict(_roles(row)) | {END: last_character(row["clean"])},
        group=group,
    )


def _choices(row: dict[str, object]) -> tuple[str, ...]:
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise UsageError(f'"choices" must be a list of texts, got {json.dumps(choices)}')
    if choices and (choices[0] != row["good"] or row["bad"] not in choices or len(set(choices)) < len(choices)):
        raise UsageError(f'"choices" must be different texts, "good" first and "bad" among them, got {choices}')
    return tuple(choices)


def _roles(row: dict[str, object]) -> Iterator[tuple[str, Span]]:
    roles = row.get("roles", {})
    clean = str(row["clean"])
    if not isinstance(roles, dict):
        raise UsageError(f'"roles" must be an object of names and pieces of "clean", got {json.dumps(roles)}')
    for name, value in roles.items():
        if name == END:
            raise UsageError(f'"roles": {END} is the last token and needs no piece, leave it out')
        piece, number = (value, None) if isinstance(value, str) else _numbered(name, value)
        starts = _starts(clean, piece) if piece else []
        if number is None and len(starts) > 1:
            raise UsageError(
                f'"roles", {name}: {piece!r} occurs {len(starts)} times in "clean", say which: [{json.dumps(piece)}, 1]'
            )
        if not 1 <= (number or 1) <= len(starts):
            raise UsageError(
                f'"roles", {name}: expected a piece of "clean", got {piece!r}, which occurs {len(starts)} times'
                + ("" if number is None else f", number {number}")
            )
        start = starts[(number or 1) - 1]
        yield name, (start, start + len(piece))


def _numbered(name: str, value: object) -> tuple[str, int]:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int and value[1]:
        return value[0], value[1]
    raise UsageError(f'"roles", {name}: expected a text or [text, occurrence from 1], got {json.dumps(value)}')


def _starts(text: str, piece: str) -> list[int]:
    return [start for start in range(len(text) - len(piece) + 1) if text.startswith(piece, start)]


def _alike(pair: PromptPair, first: PromptPair) -> None:
    """Raise UsageError where a pair has other roles or another number of choices than the file's first pair."""
    if set(pair.roles) != set(first.roles):
        raise UsageError(
            f'"roles" must be those of the first pair, {sorted(set(first.roles) - {END})}, '
            f"got {sorted(set(pair.roles) - {END})}"
        )
    if len(pair.choices) != len(first.choices):
        raise UsageError(
            f'"choices" must have the number of the first pair, {len(first.choices)}, got {len(pair.choices)}'
        )


def _row(pair: PromptPair) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(pair, name) for name in NEEDED}
    if pair.choices:
        row["choices"] = list(pair.choices)
    roles: dict[str, object] = {}
    for name, (start, end) in pair.roles.items():
        if name == END and (start, end) == last_character(pair.clean):
            continue
        piece = pair.clean[start:end]
        starts = _starts(pair.clean, piece)
        roles[name] = piece if len(starts) == 1 else [piece, starts.index(start) + 1]
    if roles:
        row["roles"] = roles
    if pair.group:
        row["group"] = pair.group
    return row
