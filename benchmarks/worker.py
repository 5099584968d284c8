"""The process of one case: it prepares the case, then does one repetition whenever it is asked for one.

Questions and answers go through a pipe; whatever libraries print goes to a file. A repetition that fails ends the
process with a traceback there, from which the parent learns why.

    question  bytes that the case may take
    answer    {"held": bytes, "facts": {...}}                     ready
    question  calls of a repetition
    answer    {"seconds": of one call, "held": bytes before, "peak": bytes}
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from probe.benchmarks import kernel_cases
from probe.benchmarks.kernel_cases import Work
from probe.benchmarks.memory import Meter, limit
from probe.benchmarks.plan import Case, Settings


def serve(pipe: Connection, said: Path, case: Case, settings: Settings, suite: str, length: int) -> None:
    """Serve the parent until it closes the pipe."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    with torch.no_grad(), suppress(EOFError):
        limit(pipe.recv(), device)
        meter = Meter(device)
        # transformers is imported for models alone
        cases = kernel_cases if suite == "kernels" else import_module("probe.benchmarks.model_cases")
        work = cases.work(case, settings, length)
        pipe.send({"held": meter.settle(), "facts": work.facts})
        answer(pipe, work, meter, device)


def answer(pipe: Connection, work: Work, meter: Meter, device: torch.device) -> None:
    """Answer every question with a repetition, and check what the first one computed. Raises EOFError at the end."""
    check = work.check
    while True:
        pipe.send(repetition(work, pipe.recv(), meter, device, check))
        check = None


def repetition(
    work: Work, calls: int, meter: Meter, device: torch.device, check: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    """Return seconds of one call, and memory before and at the peak."""
    meter.restart()
    held = meter.held()
    found = None
    start = time.perf_counter()
    for _ in range(calls):
        found = None
        found = work.call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / calls
    peak = meter.peak()
    if check is not None:
        check(found)
    return {"seconds": seconds, "held": held, "peak": peak}
