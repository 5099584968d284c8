"""Measuring a group: one process for each case, all alive at once, asked in turn for one repetition each.

That gives the times. Memory is taken afterwards, from one repetition in a fresh process for each case, in which the C
library hands every large block back to the system. By default it keeps what it likes of the memory that a layer
has freed: peaks of the same case then differ by a tenth from one process to the next.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from types import MappingProxyType
from typing import Any

from probe.benchmarks.memory import available
from probe.benchmarks.plan import Case, Group, Settings

STARTING = 600.0
"""Seconds that a case may take to get ready: imports, weights, compilation."""
SHORTEST, MOST_CALLS = 0.1, 100
"""A repetition repeats its call until it takes SHORTEST seconds or has made MOST_CALLS calls."""
WEIGHED = {"MALLOC_MMAP_THRESHOLD_": "100000"}
"""The variable with which glibc takes blocks from this size on from the system and gives them back."""
NO_MEMORY = ("MemoryError", "bad_alloc", "allocate memory", "OutOfMemoryError", "out of memory", "ENOMEM")
"""The messages of programs that are refused memory: Python, C++, torch on a CPU, torch on a GPU, the system."""


class Ended(Exception):
    """A case that gave no answer: its `status` ("out of memory", "timeout" or "error"), and the reason in words."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Worker:
    """The process of one case. A context manager, after which the process is gone."""

    def __init__(
        self, case: Case, group: Group, settings: Settings, *, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.limit = settings.memory_limit
        self._settings = settings
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "probe.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"OMP_NUM_THREADS": str(settings.threads)} | dict(environment),
            text=True,
            bufsize=1,
            start_new_session=True,  # an interruption of this command reaches this process alone, which ends the others
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._spec = {
            "case": asdict(case), "settings": asdict(settings), "suite": group.suite, "length": group.length,
        }  # fmt: skip

    def prepare(self) -> dict[str, Any]:
        """Return what the case reports when it is ready: memory held, and facts. Raises Ended."""
        free = available() if self._settings.device == "cpu" else None
        if free is not None:
            self.limit = min(self.limit, free)
        return self._ask(self._spec | {"limit": self.limit}, STARTING)

    def repeat(self, calls: int) -> dict[str, Any]:
        """Return seconds of a call, and memory, from one repetition. Raises Ended."""
        return self._ask({"calls": calls}, self._settings.timeout)

    def _ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise Ended("timeout", f"no answer within {timeout:g} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ended()
        return json.loads(line)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ended(self) -> Ended:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        if status == -signal.SIGKILL or any(word in line for word in NO_MEMORY for line in lines[-3:]):
            asked = self._settings.memory_limit
            less = "" if self.limit == asked else f", all that was free ({gigabytes(asked)} asked)"
            return Ended("out of memory", f"out of memory at {gigabytes(self.limit)}{less}")
        return Ended("error", explanation(lines) or f"ended with status {status}")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with suppress(BrokenPipeError):  # a question that was never read
                stream.close()


def gigabytes(size: int) -> str:
    """Return the bytes in decimal units: 20 GB."""
    return f"{size / 10**9:.3g} GB"


def explanation(lines: list[str]) -> str:
    """Return the exception of a traceback's text: its last line that starts with one, for notes may follow."""
    for line in reversed(lines):
        name = line.split(":")[0].split("[")[0]
        if name.replace(".", "").replace("_", "").isalnum() and name.endswith(("Error", "Exception", "Interrupt")):
            return line
    return lines[-1] if lines else ""


@dataclass
class Measured:
    """The state of one case so far; times are of its counted rounds."""

    case: Case
    status: str = "ok"
    reason: str = ""
    calls: int = 1
    limit: int = 0
    held: int = 0
    peak: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the case's row: median and quartiles in seconds, memory in bytes."""
        times = self.seconds if self.status == "ok" else []
        quarters = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        return asdict(self.case) | {
            "status": self.status,
            "reason": self.reason,
            "rounds": len(times),
            "calls": self.calls,
            "limit": self.limit,
            "seconds": median(times) if times else None,
            "low": quarters[0] if times else None,
            "high": quarters[2] if times else None,
            "held": self.held or None,
            "peak": self.peak if times else None,
            "growth": max(self.peak - self.held, 0) if times else None,
            "facts": json.dumps(self.facts),
        }


def measure(
    group: Group, settings: Settings, *, turn: Callable[[int], None] = lambda done: None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of a group's cases, and every time taken, in order.

    Round 0 is not counted, and after the others one repetition more gives the memory; `turn` gets how many are done,
    after each. A case that fails is out of the following rounds.
    """
    found = [Measured(case) for case in group.cases]
    times: list[dict[str, Any]] = []
    turns = 0
    with ExitStack() as stack:
        # started together, for imports take longer than much of what follows; then ready one by one
        workers = {each.case.name: stack.enter_context(Worker(each.case, group, settings)) for each in found}
        for each in found:
            ready = _unless_ended(each, workers[each.case.name].prepare)
            each.limit = workers[each.case.name].limit
            if ready is not None:
                each.facts = ready["facts"]
        # the case that may fail goes first in the uncounted round: where it does, there is nothing to compare
        for each in reversed(found):
            _warm_up(each, workers[each.case.name])
            turns += 1
            turn(turns)
            if group.peer and each.status != "ok":
                return [each.record()], []
        began = time.monotonic()
        for number in range(1, group.rounds + 1):
            for each in found:
                if each.status == "ok":
                    start = time.monotonic() - began
                    answer = _unless_ended(each, lambda each=each: workers[each.case.name].repeat(each.calls))
                    if answer is not None:
                        each.seconds.append(answer["seconds"])
                        times.append(
                            {"case": each.case.name, "round": number, "start": start, "seconds": answer["seconds"]}
                        )
                turns += 1
                turn(turns)
    for each in found:
        _weigh(each, group, settings)
        turns += 1
        turn(turns)
    return [each.record() for each in found], times


def _warm_up(each: Measured, worker: Worker) -> None:
    """Run the uncounted round, which also finds how many calls make a repetition."""
    if each.status != "ok":
        return
    answer = _unless_ended(each, lambda: worker.repeat(1))
    if answer is not None and answer["seconds"] < SHORTEST:
        answer = _unless_ended(each, lambda: worker.repeat(3))
    if answer is not None:
        each.calls = min(MOST_CALLS, max(1, round(SHORTEST / max(answer["seconds"], 1e-9))))


def _weigh(each: Measured, group: Group, settings: Settings) -> None:
    """Measure the memory of the case, in a process of its own."""
    if each.status != "ok":
        return
    with Worker(each.case, group, settings, environment=WEIGHED) as worker:
        ready = _unless_ended(each, worker.prepare)
        answer = None if ready is None else _unless_ended(each, lambda: worker.repeat(1))
    if ready is not None and answer is not None:
        each.held, each.peak = ready["held"], answer["peak"]


def _unless_ended(each: Measured, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return the answer; None if the case ended, whose record then says why."""
    try:
        return question()
    except Ended as ended:
        each.status, each.reason = ended.status, ended.reason
        return None
