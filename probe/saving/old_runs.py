"""Run folders: finished samples are kept as they come, so that a killed run continues where it stood.

    config.json     the options that the run was started with; another run may not enter
    samples.jsonl   one line per finished sample: {"seconds": time it took, "sample": {...}}
    result.json     written last (probe.saving.results): the run is finished

A line counts once its newline is on the disk. A process that dies while writing leaves a torn last line, which the
next one drops: at most the sample in flight is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from probe.errors import ProbeError, UsageError
from probe.saving.atomic import write_text
from probe.saving.jsonable import decode, dumps, encode

if TYPE_CHECKING:
    from probe.models import Model
    from probe.saving.results import Result

R = TypeVar("R", bound="Result")


def default_folder(command: str, model: str, config: Mapping[str, Any]) -> Path:
    """Return runs/<command>-<model>-<8 hex digits of the options>, under the working directory."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    text = json.dumps(encode(config, "config"), sort_keys=True)
    return Path("runs") / f"{command}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class RunFolder:
    """A folder that one process fills at a time; use it as a context manager, or call `close`."""

    path: Path
    config: dict[str, Any]

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.config = decode(encode(config, "config"))
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
        except BaseException:
            self._lock.release()
            raise
        self._last = time.monotonic()

    @property
    def finished(self) -> bool:
        """Return whether the result of this run is saved: `Result.load(folder.path)` then gives it without
        recomputation.
        """
        return (self.path / "result.json").is_file()

    @property
    def seconds(self) -> float:
        """Return seconds that the finished samples took, over all the processes that worked on this run."""
        return sum(line["seconds"] for line in self._lines)

    def samples(self) -> list[dict[str, Any]]:
        """Return the finished samples, oldest first."""
        return [line["sample"] for line in self._lines]

    def append(self, sample: Mapping[str, Any]) -> None:
        """Keep a finished sample; it is on the disk when this returns. TypeError for what JSON cannot hold."""
        now = time.monotonic()
        line = {"seconds": now - self._last, "sample": encode(sample, "sample")}
        with open(self.path / "samples.jsonl", "ab") as file:
            file.write(dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(decode(line))
        self._last = now

    def restart(self) -> None:
        """Forget the samples and the result; the options stay."""
        (self.path / "result.json").unlink(missing_ok=True)
        (self.path / "samples.jsonl").unlink(missing_ok=True)
        self._lines = []

    def close(self) -> None:
        """Let other processes enter."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_config(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            stray = [name for name in ("samples.jsonl", "result.json") if (self.path / name).exists()]
            if stray:
                raise ProbeError(f"{self.path} holds {stray[0]} but no config.json; give another --out or delete it")
            write_text(path, dumps(encode(self.config), indent=1) + "\n")
            return
        try:
            found = decode(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise ProbeError(f"{path} is not valid JSON; give another --out or delete the folder") from None
        if found != self.config:
            raise UsageError(
                f"{self.path} was made with other options ({_difference(found, self.config)}); "
                "give another --out or delete the folder"
            )

    def _read_lines(self) -> list[dict[str, Any]]:
        path = self.path / "samples.jsonl"
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


class Steps:
    """The named steps of a run: those that its folder holds are not done again, and each that is done is kept there.

    folder: None keeps nothing. progress: called with (steps done, steps planned) after each.
    """

    def __init__(
        self, folder: RunFolder | None, total: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._folder, self._total, self._progress = folder, total, progress
        self._found = {} if folder is None else {sample["step"]: sample["found"] for sample in folder.samples()}
        self._done = 0

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what the step found, as JSON holds it: computed now, or by an earlier process."""
        if name not in self._found:
            self._found[name] = compute()
            if self._folder is not None:
                self._folder.append({"step": name, "found": self._found[name]})
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return self._found[name]


def config_of(model: Model, analysis: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run folder must have been made with to be continued: the analysis, the model as it is, and the
    options.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    return {"analysis": analysis, "weights": model.weights_hash, "dtype": dtype, **options}


def carry_out(
    kind: type[R],
    out: RunFolder | str | Path | None,
    config: Callable[[], Mapping[str, Any]],
    measure: Callable[[RunFolder | None], R],
) -> R:
    """Return the result that a folder holds, or else what `measure` makes, step by step, in that folder, where it is
    saved.

    out: an open folder, the path of one, or None to keep nothing. config: what the folder of a path must have been made
    with.
    """
    if out is None:
        return measure(None)
    if not isinstance(out, RunFolder):
        with RunFolder(out, config()) as folder:
            return carry_out(kind, folder, config, measure)
    if out.finished:
        return kind.load(out.path)
    result = measure(out)
    result.save(out.path)
    return result


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = decode(json.loads(line))
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.keys() == {"seconds", "sample"} else None


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
