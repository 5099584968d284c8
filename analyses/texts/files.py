"""Files of the user: one text a file, or one JSON object a line. A mistake in a file is one line that says where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probe.errors import UsageError


def read_text(path: str | Path) -> str:
    """Return the content of a UTF-8 file, without a byte order mark; raise UsageError where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if not text.strip():
        raise UsageError(f"{path}: the file is empty")
    return text


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place, such as "notes.jsonl, line 3", and JSON object of each line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines() would break at U+2028 too
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{place}: not valid JSON ({error}); each line is one JSON object") from None
        if not isinstance(value, dict):
            raise UsageError(f"{place}: expected a JSON object, got {short(value)}")
        yield place, value


def short(value: Any) -> str:
    """Return a value as JSON of at most 60 characters, for an error."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
