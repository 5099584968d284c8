"""Run folders: finished units are kept as they come, so that a killed run continues where it stopped.

    config.json         what the run was started with; a run with other settings or another model may not enter
    units.jsonl         one line for each finished unit: its name, seconds, record, and hashes of the prompts it read
    prompts.jsonl.gz    the full prompts, one line each: hash, ids, text where it was made from one
    result.json         written last (probe.saving.results): the run is finished

A line counts once its newline is on the disk. A process that dies while writing leaves a torn last line, which the
next one drops: at most the unit in flight is lost.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from probe.errors import ProbeError, UsageError
from probe.saving.atomic import write_text
from probe.saving.jsonable import decode, dumps, encode
from probe.saving.packed import pack, unpack

if TYPE_CHECKING:
    from probe.frame.analysis import Prompt

SCHEMA = 2
"""Version of the folder's form."""
LINE = {"unit", "seconds", "record", "prompts"}


def default_folder(command: str, model: str, config: Mapping[str, Any]) -> Path:
    """Return runs/<command>-<model>-<8 hex digits of the config>, under the working directory."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    text = json.dumps(encode(config, "config"), sort_keys=True)
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", command)
    return Path("runs") / f"{words}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class RunFolder:
    """A folder that one process fills at a time; use it as a context manager, or call `close`."""

    path: Path
    config: dict[str, Any]

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.config = {"schema": SCHEMA} | self.encoded(config)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"expected a folder for the run, got the file {self.path}; give another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ProbeError(f"{self.path} is in use by another run; wait for it or give another --out") from None
        except OSError as error:
            raise ProbeError(f"cannot write to {self.path} ({error.strerror}); give another --out") from None
        try:
            self._check_config()
            self._lines = self._read_lines()
            _cut_torn_member(self.path / "prompts.jsonl.gz")
        except BaseException:
            self._lock.release()
            raise
        self._kept = {prompt[0] for line in self._lines for prompt in line["prompts"]}
        self.before = sum(line["seconds"] for line in self._lines)
        """Seconds that the units took that were finished when the folder was opened."""

    @staticmethod
    def encoded(values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as they read back from JSON."""
        return decode(encode(values, "config", other=pack), other=unpack)

    @property
    def finished(self) -> bool:
        """Return whether a result is saved here."""
        return (self.path / "result.json").is_file()

    @property
    def seconds(self) -> float:
        """Return the seconds that the finished units took, over all processes that worked on this run."""
        return sum(line["seconds"] for line in self._lines)

    def records(self) -> dict[str, Any]:
        """Return the record of every finished unit by the unit's name, oldest first."""
        return {line["unit"]: line["record"] for line in self._lines}

    def prompts(self) -> dict[str, tuple[int, int]]:
        """Return the length of each prompt that was read and the most tokens written after it, by hash."""
        found: dict[str, tuple[int, int]] = {}
        for line in self._lines:
            for key, tokens, written in line["prompts"]:
                found[key] = (tokens, max(written, found.get(key, (tokens, 0))[1]))
        return found

    def append(self, unit: str, record: Any, *, seconds: float, prompts: Iterable[Prompt] = ()) -> Any:
        """Keep a finished unit and return its record as JSON gives it back; it is on the disk when this returns.

        Raises TypeError for what JSON cannot hold.
        """
        read = list(prompts)
        line = {
            "unit": unit,
            "seconds": seconds,
            "record": encode(record, unit, other=pack),
            "prompts": [[prompt.hash, len(prompt.ids), prompt.written] for prompt in read],
        }
        fresh = {prompt.hash: prompt for prompt in read if prompt.hash not in self._kept}
        if fresh:
            lines = [{"hash": each.hash, "ids": list(each.ids), "text": each.text} for each in fresh.values()]
            self._write("prompts.jsonl.gz", gzip.compress("".join(dumps(each) + "\n" for each in lines).encode()))
            self._kept |= fresh.keys()
        self._write("units.jsonl", dumps(line).encode() + b"\n")
        self._lines.append(decode(line, other=unpack))
        return self._lines[-1]["record"]

    def close(self) -> None:
        """Let other processes enter."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, content: bytes) -> None:
        with open(self.path / name, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _check_config(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            stray = [name for name in ("units.jsonl", "samples.jsonl", "result.json") if (self.path / name).exists()]
            if stray:
                raise ProbeError(f"{self.path} holds {stray[0]} but no config.json; give another --out or delete it")
            write_text(path, dumps(encode(self.config), indent=1) + "\n")
            return
        try:
            found = decode(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise ProbeError(f"{path} is not valid JSON; give another --out or delete the folder") from None
        if isinstance(found, dict) and found.get("schema") != SCHEMA:
            raise UsageError(f"{self.path} was made by another version of probe; give another --out or delete it")
        if found != self.config:
            raise UsageError(
                f"{self.path} was made with other options ({_difference(found, self.config)}); "
                "give another --out or delete the folder"
            )

    def _read_lines(self) -> list[dict[str, Any]]:
        path = self.path / "units.jsonl"
        if not path.exists():
            return []
        content = path.read_bytes()
        lines: list[dict[str, Any]] = []
        kept = 0
        while kept < len(content):
            end = content.find(b"\n", kept) + 1
            line = _parse(content[kept:end]) if end else None
            if line is None:
                if end and end < len(content):
                    raise ProbeError(f"{path} line {len(lines) + 1} is damaged; delete the folder and run again")
                os.truncate(path, kept)
                break
            lines.append(line)
            kept = end
        return lines


def read_prompts(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the full prompts of a run folder: hash, ids, and text where a prompt was made from one."""
    path = Path(folder) / "prompts.jsonl.gz"
    if not path.exists():
        return
    seen: set[str] = set()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            prompt = json.loads(line)
            if prompt["hash"] not in seen:  # a unit that was cut off has kept its prompts, and keeps them again
                seen.add(prompt["hash"])
                yield prompt


def _cut_torn_member(path: Path) -> None:
    """Cut off a half-written last member of a gzip file, which would hide all that is appended behind it.

    Raises ProbeError for any other damage: a member whose bytes are wrong, or one cut short that others follow.
    """
    rest = path.read_bytes() if path.exists() else b""
    try:
        while rest:
            after = _after_member(rest)
            if after is None:
                if any(_is_member(rest[start.start() :]) for start in re.finditer(b"\x1f\x8b\x08", rest)):
                    raise zlib.error
                os.truncate(path, path.stat().st_size - len(rest))
            rest = after or b""
    except zlib.error:
        raise ProbeError(f"{path} is damaged; delete the folder and run again") from None


def _after_member(content: bytes) -> bytes | None:
    """Return what follows the gzip member that `content` begins with, None if it is cut short."""
    member = zlib.decompressobj(wbits=31)
    member.decompress(content)
    return member.unused_data if member.eof else None


def _is_member(content: bytes) -> bool:
    with suppress(zlib.error):
        return _after_member(content) is not None
    return False


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = decode(json.loads(line), other=unpack)
    except (ValueError, zlib.error):
        return None
    return value if isinstance(value, dict) and value.keys() == LINE else None


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its config.json is not an object"
    missing = object()
    changed = [key for key in {**found, **wanted} if found.get(key, missing) != wanted.get(key, missing)]
    return ", ".join(
        f"{key}: expected {_short(found.get(key))}, got {_short(wanted.get(key))}" for key in changed[:3]
    ) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
