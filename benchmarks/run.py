"""The run behind `probe bench`: tests, then every group of cases, kept in a run folder as they come."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import probe
from probe.benchmarks.crew import Measured, measure
from probe.benchmarks.gate import check_agreement, kernel_tests, run_tests
from probe.benchmarks.kernel_cases import inputs, serving
from probe.benchmarks.plan import Group, Settings, groups
from probe.benchmarks.record import Benchmark
from probe.errors import UsageError
from probe.kernels.attend import chosen
from probe.kernels.contract import Request
from probe.kernels.native import build
from probe.loading.hashes import files_hash
from probe.loading.sources import resolve
from probe.saving.manifest import Manifest, hardware, manifest_of, versions
from probe.saving.runs import RunFolder

PEER_LIBRARIES = ("transformer-lens", "nnsight", "triton")


def run(
    settings: Settings,
    *,
    out: Path,
    tests: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Benchmark:
    """Return times and memory of every case of the plan, saved in `out`; a run that was cut off is resumed.

    tests: what must pass first; None for the checkout's kernel tests. Raises ProbeError, before anything is timed,
    where a test fails or an implementation disagrees with the reference.
    """
    refused = serving(settings)
    plan = groups(settings, [name for name, reason in refused.items() if not reason])
    refused = {name: reason for name, reason in refused.items() if reason}
    with RunFolder(out, config(settings)) as folder:
        if folder.finished:
            return Benchmark.load(out)
        done = folder.records()
        if "checked" in done:
            checked = done["checked"]["facts"]
        else:
            start = time.monotonic()
            checked = check(settings, plan, tests, note)
            folder.append("checked", {"facts": checked}, seconds=time.monotonic() - start)
        total = sum(len(group.cases) * (group.rounds + 2) for group in plan)
        turns = 0
        for group in plan:
            if group.name not in done:
                start = time.monotonic()
                cases, times = _skipped(group, done), []
                if not cases:
                    cases, times = measure(group, settings, turn=lambda n, before=turns: progress(before + n, total))
                done[group.name] = {"group": group.name, "length": group.length, "cases": cases, "times": times}
                folder.append(group.name, done[group.name], seconds=time.monotonic() - start)
            turns += len(group.cases) * (group.rounds + 2)
            progress(turns, total)
        found = Benchmark(
            manifest=manifest(settings, seconds=folder.seconds, sources=folder.config["code"]),
            machine=machine(settings),
            checked=checked,
            refused=refused,
            cases=table(plan, done),
            times=pd.DataFrame([{"group": group.name} | time for group in plan for time in done[group.name]["times"]]),
        )
        found.save(out)
        return found


def check_device(settings: Settings) -> None:
    """Raises UsageError where this machine has no such device."""
    kind = settings.device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not there.get(kind, False):
        raise UsageError(f"--device: expected cpu or a CUDA device that is there, got {settings.device}")


def check(settings: Settings, plan: Sequence[Group], tests: Path | None, note: Callable[[str], None]) -> dict[str, Any]:
    """Return the results of the tests and of the comparison with the reference. Raises ProbeError if one fails."""
    checked: dict[str, Any] = {"tests": None, "passed": 0, "seconds": 0.0}
    tests = tests or kernel_tests()
    if tests is not None:
        note(f"running the tests in {tests}, before anything is measured")
        checked = run_tests(tests)
    query, key, _ = inputs(settings, 8)
    names = {case.implementation for group in plan for case in group.cases if case.implementation}
    serve = {chosen(query, key, request=Request(lse=True), implementation=name) for name in names}
    return checked | {"difference": check_agreement(settings, sorted(serve))}


def table(plan: Sequence[Group], done: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the records of all cases, with what they are multiples of."""
    rows = pd.DataFrame(
        {"suite": group.suite, "length": group.length, "group": group.name, "peer": group.peer} | case
        for group in plan
        for case in done[group.name]["cases"]
    )
    rows = rows.astype(dict.fromkeys(("seconds", "low", "high", "held", "peak", "growth"), "float64"))
    for name, method in (("ratio", ("sdpa", "plain")), ("products", ("products",))):
        others = rows[rows["method"].isin(method)].set_index("group")["seconds"]
        rows[name] = rows["seconds"] / rows["group"].map(others)
    return rows


def config(settings: Settings) -> dict[str, Any]:
    """Return what identifies a run: its settings, the machine with its libraries, and the code."""
    return {"settings": asdict(settings), "machine": machine(settings), "code": code()}


def machine(settings: Settings) -> dict[str, Any]:
    """Return where the cases run: device, processor, cores and memory, and the versions of everything measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "device": torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else "CPU",
        "processor": processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "memory": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(*PEER_LIBRARIES),
    }


def processor() -> str:
    """Return the processor's name, as it calls itself."""
    names = (line.partition(":")[2].strip() for line in build.processor() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def code() -> str:
    """Return a hash of the sources that are measured and that measure, sixteen hex digits."""
    digest = hashlib.sha256()
    root = Path(probe.__file__).parent
    # kernels/ and benchmarks/ are links in a checkout, which a search of their parent does not follow
    found = {path for folder in (root, root / "kernels", root / "benchmarks") for path in folder.rglob("*")}
    for path in sorted(found):
        relative = path.relative_to(root)
        if path.suffix in (".py", ".cpp", ".h") and relative.parts[0] not in ("analyses", "app"):
            digest.update(relative.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def manifest(settings: Settings, *, seconds: float, sources: str) -> Manifest:
    """Return the manifest of a finished run; a run of kernels alone has no model."""
    found = manifest_of(
        None,
        analysis="bench",
        options=json.loads(json.dumps(asdict(settings))) | {"code": sources},
        seed=settings.seed,
        measuring=seconds,
    )
    where = {"device": settings.device, "hardware": hardware(torch.device(settings.device)), "dtype": settings.dtype}
    found = replace(found, name="kernels", attention="see cases", **where)
    if settings.suite == "kernels":
        return found
    source = resolve(settings.model, revision=settings.revision)
    about = {"model": source.model, "revision": source.revision, "weights_hash": files_hash(source)}
    return replace(found, name=settings.model, **about)


def _skipped(group: Group, done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a skipped peer's record if a shorter text was too long for it already, else an empty list."""
    peer = group.cases[-1]
    for sample in done.values() if group.peer else ():
        for case in sample.get("cases", ()):
            failed = case["name"] == peer.name and case["status"] in ("out of memory", "timeout")
            if failed and sample["length"] < group.length:
                reason = f"{case['reason']} with {sample['length']:,} tokens already"
                return [Measured(peer, status="skipped", reason=reason).record()]
    return []
