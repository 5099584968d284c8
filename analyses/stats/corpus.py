"""The user's texts, read from files: one text a line (JSONL), one text a file, or all files of a folder.

Each text keeps the name of the place where it stands, "notes.jsonl, line 3", which the tables and every error use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.analyses.stats.settings import Settings
from probe.analyses.texts.files import json_lines, read_text, short
from probe.errors import UsageError

LINES = ".jsonl"
WHOLE = (".txt", ".md", ".rst")

Message = dict[str, Any]
"""A message of a chat, as templates take it: "role", "content", and whatever else the template reads."""


@dataclass(frozen=True)
class Document:
    """A text or a chat transcript, and the name of the place where it stands; `messages` is empty for a text."""

    name: str
    text: str = ""
    messages: tuple[Message, ...] = ()


def documents(settings: Settings) -> Iterator[Document]:
    """Yield the documents that the settings name, in order; raise UsageError for the first that cannot be read."""
    for path in settings.files:
        yield from _of_path(path)
    for number, prompt in enumerate(settings.prompt, start=1):
        yield document(f"prompt {number}", prompt)
    for path in settings.prompt_file:
        yield document(str(path), read_text(path))
    for number, value in enumerate(settings.texts or (), start=1):
        yield document(f"text {number}", value)


def document(name: str, value: Any) -> Document:
    """Return the document of a string or a list of messages; raise UsageError where it is neither, or empty."""
    if isinstance(value, str):
        if not value.strip():
            raise UsageError(f"{name}: the text is empty; remove it or give it content")
        return Document(name, text=value)
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{name}: expected a text or a list of messages that is not empty, got {short(value)}")
    for number, message in enumerate(value, start=1):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise UsageError(f'{name}, message {number}: missing "{key}"; each message needs "role" and "content"')
    return Document(name, messages=tuple(value))


def _of_path(path: Path) -> Iterator[Document]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (LINES, *WHOLE))
        if not files:
            raise UsageError(f"{path}: the folder holds no {LINES}, {', '.join(WHOLE[:-1])} or {WHOLE[-1]} file")
        for file in files:
            yield from _of_path(file)
    elif path.suffix == LINES:
        yield from _of_lines(path)
    elif path.suffix in WHOLE:
        yield document(str(path), read_text(path))
    else:
        raise UsageError(
            f"{path}: expected a {LINES}, {', '.join(WHOLE)} file or a folder; "
            "give any other file that is one text with --prompt-file"
        )


def _of_lines(path: Path) -> Iterator[Document]:
    for place, value in json_lines(path):
        keys = [key for key in ("text", "messages") if key in value]
        if len(keys) != 1:
            got = "has both" if keys else "missing"
            raise UsageError(f'{place}: {got} "text" and "messages"; each line needs one of them')
        if not isinstance(value[keys[0]], str if keys[0] == "text" else list):
            wanted = "a string" if keys[0] == "text" else "a list"
            raise UsageError(f'{place}: "{keys[0]}" must be {wanted}, got {short(value[keys[0]])}')
        yield document(place, value[keys[0]])
