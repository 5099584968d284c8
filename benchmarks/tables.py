"""The results as people read them: one table per suite, in words and rounded numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from probe.benchmarks.figures import size

if TYPE_CHECKING:
    import pandas as pd

    from probe.benchmarks.record import Benchmark

Table = tuple[list[str], list[list[str]]]
Cell = Callable[[dict[str, Any]], str]


def long(found: Benchmark, suite: str) -> Table:
    """Return headings, and one row per length and case; times with their quartiles."""
    kernels = suite == "kernels"
    cells: dict[str, Cell] = {
        "median": lambda case: seconds(case["seconds"]),
        "quartiles": lambda case: f"{seconds(case['low'])} to {seconds(case['high'])}",
        "of sdpa" if kernels else "of plain": lambda case: times(case["ratio"]),
        **({"of products": lambda case: times(case["products"])} if kernels else {}),
        "memory": lambda case: size(case["growth"]),
        "peak": lambda case: size(case["peak"]),
    }
    rows, last = [], None
    for case in found.suite(suite).to_dict(orient="records"):
        failed = outcome(case)
        told = [failed, *[""] * (len(cells) - 1)] if failed else [cell(case) for cell in cells.values()]
        rows.append([f"{case['length']:,}" if case["length"] != last else "", case["name"], *told])
        last = case["length"]
    return ["tokens", "case", *cells], rows


def wide(found: Benchmark, suite: str, cell: Cell) -> Table:
    """Return headings, and one row per case with a cell for each length, or how the case failed."""
    rows = found.suite(suite)
    told = rows.assign(cell=[outcome(case) or cell(case) for case in rows.to_dict(orient="records")])
    body = told.pivot(index="name", columns="length", values="cell").fillna("").loc[rows["name"].unique()]
    return ["case", *(f"{length:,} tokens" for length in body)], [[name, *row] for name, *row in body.itertuples()]


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
