"""The user's texts, read from files: one text a line (JSONL), one text a file, or all files of a folder.

Each text keeps the name of the place where it stands, "notes.jsonl, line 3", which the tables and every error use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.analyses.stats.settings import Settings
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
        yield document(str(path), _content(path))
    for number, value in enumerate(settings.texts or (), start=1):
        yield document(f"text {number}", value)


def document(name: str, value: Any) -> Document:
    """Return the document of a string or a list of messages; raise UsageError where it is neither, or empty."""
    if isinstance(value, str):
        if not value.strip():
            raise UsageError(f"{name}: the text is empty; remove it or give it content")
        return Document(name, text=value)
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{name}: expected a text or a list of messages that is not empty, got {_short(value)}")
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
        yield document(str(path), _content(path))
    else:
        raise UsageError(
            f"{path}: expected a {LINES}, {', '.join(WHOLE)} file or a folder; "
            "give any other file that is one text with --prompt-file"
        )


def _of_lines(path: Path) -> Iterator[Document]:
    empty = True
    for number, line in enumerate(_content(path).split("\n"), start=1):  # splitlines() would break at U+2028 too
        if line.strip():
            empty = False
            yield _of_line(f"{path}, line {number}", line)
    if empty:
        raise UsageError(f'{path}: the file is empty; each line needs "text" or "messages"')


def _of_line(name: str, line: str) -> Document:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{name}: not valid JSON ({error}); each line is one JSON object") from None
    if not isinstance(value, dict):
        raise UsageError(f'{name}: expected an object with "text" or "messages", got {_short(value)}')
    keys = [key for key in ("text", "messages") if key in value]
    if len(keys) != 1:
        got = "has both" if keys else "missing"
        raise UsageError(f'{name}: {got} "text" and "messages"; each line needs one of them')
    if not isinstance(value[keys[0]], str if keys[0] == "text" else list):
        wanted = "a string" if keys[0] == "text" else "a list"
        raise UsageError(f'{name}: "{keys[0]}" must be {wanted}, got {_short(value[keys[0]])}')
    return document(name, value[keys[0]])


def _content(path: Path) -> str:
    """Return the text of a UTF-8 file, without the byte order mark that it may begin with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
