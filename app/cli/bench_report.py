"""The output of `probe bench`: where it runs, a table per suite, and where the figures are."""

from __future__ import annotations

import json
from pathlib import Path

import click

from probe.app.cli.report import document
from probe.app.cli.tables import show
from probe.benchmarks.plan import Settings
from probe.benchmarks.record import Benchmark
from probe.benchmarks.tables import errors, long, machine
from probe.saving.jsonable import dumps


def opening(settings: Settings, folder: Path) -> list[str]:
    """Return the first lines: what will be measured, where it is kept."""
    lengths = ", ".join(f"{length:,}" for length in settings.lengths)
    what = {"kernels": "kernels", "model": settings.model, "all": f"kernels and {settings.model}"}[settings.suite]
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    rounds = f"{settings.repeats} round{'s' if settings.repeats > 1 else ''}"
    return [
        f"{what} at {lengths} tokens, {settings.dtype} on {settings.device}, {threads}, {rounds}",
        f"run folder: {folder}",
    ]


def print_found(found: Benchmark, folder: Path) -> None:
    """Print the tables, and the lines that explain them."""
    for line in machine(found):
        click.echo(line)
    for suite in found.cases["suite"].unique():
        click.echo()
        columns, rows = long(found, suite)
        show(columns, rows, right=[column for column in columns if column != "case"])
        for name, reason in errors(found.suite(suite)).items():
            click.echo(f"{name}: {reason}")
    click.echo()
    for suite in found.cases["suite"].unique():
        click.echo(f"figure: {folder / 'figures' / suite}.html")


def as_json(found: Benchmark, folder: Path) -> str:
    """Return the JSON object of every command; its tables hold every single time."""
    content = found.to_dict()
    for case in content["cases"]:
        case["facts"] = json.loads(case["facts"])
    refused = [{"implementation": name, "reason": reason} for name, reason in found.refused.items()]
    tables = {"cases": content["cases"], "times": content["times"], "refused": refused}
    tables |= {"machine": [content["machine"]], "checked": [content["checked"]]}
    return dumps(document(found, folder) | {"tables": tables}, indent=1)
