"""Measuring a group: one process for each case, all alive at once, asked in turn for one repetition each.

That gives the times. Memory is taken afterwards, from one repetition in a fresh process for each case, in which the C
library hands every large block back to the system. By default it keeps what it likes of the memory that a layer
has freed: peaks of the same case then differ by a tenth from one process to the next.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np

from probe.benchmarks.memory import available
from probe.benchmarks.plan import Case, Group, Settings
from probe.benchmarks.worker import serve

STARTING = 600.0
"""Seconds that a case may take to get ready: imports, weights, compilation."""
SHORTEST, MOST_CALLS = 0.1, 100
"""A repetition repeats its call until it takes SHORTEST seconds or has made MOST_CALLS calls."""
WEIGHED = {"MALLOC_MMAP_THRESHOLD_": "100000"}
"""The variable with which glibc takes blocks from this size on from the system and gives them back."""
NO_MEMORY = ("MemoryError", "bad_alloc", "allocate memory", "OutOfMemoryError", "out of memory", "ENOMEM")
"""The messages of programs that are refused memory: Python, C++, torch on a CPU, torch on a GPU, the system."""


@dataclass
class Measured:
    """The state of one case so far; times are of its counted rounds.

    status: "ok", or how it ended ("out of memory", "timeout", "error"), for the reason in words.
    """

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
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist() if times else 3 * [None]
        told = {name: getattr(self, name) for name in ("status", "reason", "calls", "limit")} | asdict(self.case)
        return told | {
            "rounds": len(times),
            "seconds": middle,
            "low": low,
            "high": high,
            "held": self.held or None,
            "peak": self.peak if times else None,
            "growth": max(self.peak - self.held, 0) if times else None,
            "facts": json.dumps(self.facts),
        }


class Worker:
    """The process of one case. A context manager, after which the process is gone.

    Where it gives no answer, the case has ended: `found` says how and why, and every later answer is None.
    """

    def __init__(
        self, found: Measured, group: Group, settings: Settings, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.found = found
        self._settings = settings
        self._folder = TemporaryDirectory()
        self._said = Path(self._folder.name) / "said"
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._said, found.case, settings, group.suite, group.length)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with _deaf(), patch.dict(os.environ, {"OMP_NUM_THREADS": str(settings.threads)} | dict(environment)):
            self.process.start()
        theirs.close()

    def prepare(self) -> dict[str, Any] | None:
        """Return what the case reports when it is ready: memory held, and facts."""
        free = available() if self._settings.device == "cpu" else None
        limit = self._settings.memory_limit
        self.found.limit = limit if free is None else min(limit, free)
        return self._ask(self.found.limit, STARTING)

    def repeat(self, calls: int) -> dict[str, Any] | None:
        """Return seconds of a call, and memory, from one repetition."""
        return self._ask(calls, self._settings.timeout)

    def _ask(self, question: int, timeout: float) -> dict[str, Any] | None:
        if self.found.status != "ok":
            return None
        try:
            self._pipe.send(question)
            if self._pipe.poll(timeout):
                return self._pipe.recv()
            self.found.status, self.found.reason = "timeout", f"no answer within {timeout:g} s"
        except (EOFError, OSError):
            self.found.status, self.found.reason = self._ended()
        return None

    def _ended(self) -> tuple[str, str]:
        """Return how the process ended by itself, and the reason."""
        self.process.join()
        said = self._said.read_text(encoding="utf-8", errors="replace") if self._said.exists() else ""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if self.process.exitcode == -signal.SIGKILL or any(word in line for word in NO_MEMORY for line in lines[-3:]):
            limit, asked = self.found.limit, self._settings.memory_limit
            less = "" if limit == asked else f", all that was free ({gigabytes(asked)} asked)"
            return "out of memory", f"out of memory at {gigabytes(limit)}{less}"
        return "error", explanation(lines) or f"ended with status {self.process.exitcode}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()
        self._folder.cleanup()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore interruptions, also in processes that start inside: they are for this one alone, which ends the others."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets and sets them
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


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


def measure(
    group: Group, settings: Settings, *, turn: Callable[[int], None] = lambda done: None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of a group's cases, and every time taken, in order.

    Round 0 is not counted, and after the others one repetition more gives the memory; `turn` gets how many are done,
    after each. A case that fails is out of the following rounds.
    """
    measured = [Measured(case) for case in group.cases]
    times: list[dict[str, Any]] = []
    turns = count(1)
    with ExitStack() as stack:
        # started together, for imports take longer than much of what follows; then ready one by one
        workers = [stack.enter_context(Worker(found, group, settings)) for found in measured]
        for worker in workers:
            if ready := worker.prepare():
                worker.found.facts = ready["facts"]
        # the case that may fail goes first in the uncounted round: where it does, there is nothing to compare
        for worker in reversed(workers):
            _warm_up(worker)
            turn(next(turns))
            if group.peer and worker.found.status != "ok":
                return [worker.found.record()], []
        began = time.monotonic()
        for number in range(1, group.rounds + 1):
            for worker in workers:
                found, start = worker.found, time.monotonic() - began
                if answer := worker.repeat(found.calls):
                    found.seconds.append(answer["seconds"])
                    times.append(
                        {"case": found.case.name, "round": number, "start": start, "seconds": answer["seconds"]}
                    )
                turn(next(turns))
    for found in measured:
        if found.status == "ok":
            with Worker(found, group, settings, WEIGHED) as worker:
                if (ready := worker.prepare()) and (answer := worker.repeat(1)):
                    found.held, found.peak = ready["held"], answer["peak"]
        turn(next(turns))
    return [found.record() for found in measured], times


def _warm_up(worker: Worker) -> None:
    """Run the uncounted round, which also finds how many calls make a repetition."""
    answer = worker.repeat(1)
    if answer and answer["seconds"] < SHORTEST:
        answer = worker.repeat(3)
    if answer:
        worker.found.calls = min(MOST_CALLS, max(1, round(SHORTEST / max(answer["seconds"], 1e-9))))
