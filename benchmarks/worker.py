"""The process of one case: it prepares the case, then does one repetition whenever it is asked for one.

Lines of JSON come in on stdin and go out on what was stdout; whatever libraries print goes to stderr. A repetition that
fails ends the process with a traceback, from which the parent learns why.

    in   {"case": {...}, "settings": {...}, "suite": "kernels", "length": 512, "limit": bytes}
    out  {"held": bytes, "facts": {...}}                     ready
    in   {"calls": 3}
    out  {"seconds": of one call, "held": bytes before, "peak": bytes}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import torch

from probe.benchmarks import kernel_cases
from probe.benchmarks.kernel_cases import Work
from probe.benchmarks.memory import Meter, limit
from probe.benchmarks.plan import Case, Settings


def main() -> None:
    """Serve the parent until it closes stdin."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    settings = Settings(**asked["settings"])
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    limit(asked["limit"], device)
    meter = Meter(device)
    with torch.no_grad():
        work = _work(Case(**asked["case"]), settings, asked["suite"], asked["length"])
        _say(answers, held=meter.settle(), facts=work.facts)
        serve(work, sys.stdin, answers, meter, device)


def serve(work: Work, questions: Iterable[str], answers: TextIO, meter: Meter, device: torch.device) -> None:
    """Answer every question with a repetition, and check what the first one computed."""
    check = work.check
    for line in questions:
        _say(answers, **repetition(work, json.loads(line)["calls"], meter, device, check))
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


def _work(case: Case, settings: Settings, suite: str, length: int) -> Work:
    if suite == "kernels":
        return kernel_cases.work(case, settings, length)
    from probe.benchmarks import model_cases

    return model_cases.work(case, settings, length)


def _say(answers: TextIO, **facts: Any) -> None:
    answers.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
