"""Commands print a result as tables, sentences and claims for people, one JSON object for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import click
import pandas as pd

from probe.app.cli.tables import folded, show
from probe.frame.findings import Finding
from probe.frame.tables import Table, written
from probe.saving.jsonable import plain
from probe.saving.results import Result

number = written(".3g")


def print_result(
    found: Result, folder: Path, *, top: int | None = None, layers: Sequence[int] | None = None
) -> None:
    """Print the tables, the sentences, the claims with their verdicts, and where files and figures are."""
    for table in found.tables().values():
        print_table(table, top=top, layers=layers)
        click.echo()
    sentences = found.summary()
    for line in sentences:
        click.echo(folded(line))
    if sentences:
        click.echo()
    if findings := found.findings():
        click.echo("Claims that this run tests:")
        for finding in findings:
            click.echo(described(finding))
        click.echo()
    for name in found.exports():
        click.echo(f"table: {folder / name}")
    for part, inside in {"": found, **found.parts()}.items():
        if paths := figure_paths(inside, folder / part):
            first, *others = paths
            beside = f", and beside it {', '.join(others)}" if others else ""
            click.echo(f"figure: {paths[first]}{beside}")


def print_table(table: Table, *, top: int | None = None, layers: Sequence[int] | None = None) -> None:
    """Print a table with its title and, below it, what its numbers mean."""
    rows = _of_layers(table.rows, layers)
    limit = top or table.top or len(rows)
    records = rows.head(limit).to_dict("records")
    headers = [column.header for column in table.columns]
    right = [column.header for column in table.columns if not _is_text(rows, column.name)]
    show(headers, [[column.cell(row) for column in table.columns] for row in records], right=right, title=table.title)
    if len(rows) > limit:
        click.echo(f"and {len(rows) - limit} more rows: --top {len(rows)}, or --json")
    for part in re.split(r"(?<=[;.]) (?=[^:;.]{1,25}: )", table.meaning):  # before each header that is explained
        click.echo(folded(part.rstrip(";"), indent="  "))


def described(finding: Finding) -> str:
    """Return one finding: a line with the verdict and the claim, then one each for quantity, control and source."""
    lines = [folded(f"{finding.verdict}: {finding.claim}", indent="  ")]
    if not isnan(finding.value):
        count = f" (n = {finding.n})" if finding.n else ""
        lines.append(folded(f"{finding.quantity}: {_interval(finding, '')}{count}", indent="    "))
    if not isnan(finding.control_value):
        lines.append(folded(f"{finding.control}: {_interval(finding, 'control_')}", indent="    "))
    return "\n".join([*lines, folded(f"source: {finding.source}", indent="    ")])


def document(found: Result, folder: Path, *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return what --json prints; every command has the same keys."""
    tables = {name: _of_layers(table.rows, layers).to_dict("records") for name, table in found.tables().items()}
    paths = figure_paths(found, folder)
    for name, part in found.parts().items():
        paths |= {f"{name}/{figure}": path for figure, path in figure_paths(part, folder / name).items()}
    return plain(
        {
            "settings": found.manifest.options,
            "manifest": found.manifest.to_dict(),
            "findings": [finding.to_dict() for finding in found.findings()],
            "tables": tables,
            "scores": {name: score.to_dict() for name, score in found.head_scores().items()},
            "figures": paths,
        }
    )


def figure_paths(found: Result, folder: Path) -> dict[str, str]:
    """Return the pages of a saved result by name, the main one first."""
    return {name: str(folder / "figures" / f"{name}.html") for name in found.figures()}


def _of_layers(rows: pd.DataFrame, layers: Sequence[int] | None) -> pd.DataFrame:
    return rows if layers is None or "layer" not in rows else rows[rows["layer"].isin(list(layers))]


def _is_text(rows: pd.DataFrame, name: str) -> bool:
    return bool(len(rows)) and isinstance(rows[name].iloc[0], str)


def _interval(finding: Finding, prefix: str) -> str:
    value, low, high = (getattr(finding, f"{prefix}{name}") for name in ("value", "low", "high"))
    return number(value) if isnan(low) or isnan(high) else f"{number(value)} [{number(low)}, {number(high)}]"
