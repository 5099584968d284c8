"""The results as people read them: one table per suite, in words and rounded numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from probe.benchmarks.figures import size

if TYPE_CHECKING:
    import pandas as pd

    from probe.benchmarks.record import Benchmark

Table = tuple[list[str], list[list[str]]]


def long(found: Benchmark, suite: str) -> Table:
    """Return headings, and one row per length and case; times with their quartiles."""
    kernels = suite == "kernels"
    columns = ["tokens", "case", "median", "quartiles", "of sdpa" if kernels else "of plain"]
    columns += ["of products", "memory", "peak"] if kernels else ["memory", "peak"]
    rows, last = [], None
    for case in found.suite(suite).to_dict(orient="records"):
        row = [f"{case['length']:,}" if case["length"] != last else "", case["name"]]
        last = case["length"]
        if case["status"] != "ok":
            rows.append([*row, outcome(case), *[""] * (len(columns) - 3)])
            continue
        row += [seconds(case["seconds"]), f"{seconds(case['low'])} to {seconds(case['high'])}", times(case["ratio"])]
        row += [times(case["products"])] if kernels else []
        rows.append([*row, size(case["growth"]), size(case["peak"])])
    return columns, rows


def wide(found: Benchmark, suite: str, cell: Callable[[dict[str, Any]], str]) -> Table:
    """Return headings, and one row per case with a cell for each length, or how the case failed."""
    rows = found.suite(suite)
    lengths = sorted(rows["length"].unique())
    body = []
    for name, cases in rows.groupby("name", sort=False):
        by_length = {case["length"]: case for case in cases.to_dict(orient="records")}
        cells = [by_length.get(length) for length in lengths]
        body.append([str(name), *("" if c is None else outcome(c) or cell(c) for c in cells)])
    return ["case", *(f"{length:,} tokens" for length in lengths)], body


def outcome(case: dict[str, Any]) -> str:
    """Return how a case failed; empty for one that has a result. Errors are explained apart."""
    if case["status"] == "ok":
        return ""
    if case["status"] == "skipped":
        return f"not tried ({case['reason'].partition(' with ')[0]} before)"
    return case["reason"] if case["status"] in ("out of memory", "timeout") else "error"


def errors(rows: pd.DataFrame) -> dict[str, str]:
    """Return why cases ended in an error, by their name."""
    failed = rows[rows["status"] == "error"]
    return {str(name): str(reason) for name, reason in zip(failed["name"], failed["reason"], strict=True)}


def seconds(value: float) -> str:
    """Return a time in words: 0.61 ms, 43.1 ms, 2.34 s."""
    if value >= 1:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    return f"{value * 1e3:.3g} ms"


def times(value: float) -> str:
    """Return a multiple in words: 0.57x; empty for none."""
    return "" if value != value else f"{value:.2f}x"


def machine(found: Benchmark) -> list[str]:
    """Return lines that say what ran where."""
    about, settings = found.machine, found.manifest.options
    memory = f", {size(about['memory'])} of memory" if about["memory"] else ""
    gpu = "" if about["device"] == "CPU" else f"{about['device']}; "
    libraries = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{gpu}{about['processor']}, {about['vectors']}, {about['threads']} of {about['cores']} cores{memory}, "
        f"{about['system']}",
        libraries,
    ]
    kinds = list(found.cases["suite"].unique())
    if "kernels" in kinds:
        lines.append(
            f"kernels: batch {settings['batch']}, {settings['heads']} query heads on {settings['kv_heads']} KV heads "
            f"of {settings['head_dim']}, {settings['dtype']}, causal, self-attention over the whole text"
        )
    if "model" in kinds:
        lines.append(f"model: {found.manifest.model}, {settings['dtype']}, batch 1, logits of the last position")
    checked = found.checked
    if checked["tests"] is not None:
        lines.append(f"before: {checked['passed']} tests of {checked['tests']} passed in {seconds(checked['seconds'])}")
    apart = ", ".join(f"{name} {value:.1e}" for name, value in checked["difference"].items())
    lines.append(f"largest relative difference from the float64 reference: {apart}")
    lines += [f"not here: {name}, which {reason}" for name, reason in found.refused.items()]
    return lines
