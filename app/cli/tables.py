"""Printing for people: tables that fit the terminal, and are as wide as they need to be in a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Return a console on stdout that breaks no line where stdout is a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False, soft_wrap=False)


def folded(text: str, *, indent: str = "") -> str:
    """Return text in indented lines that fit the terminal, and in one line where stdout is a file or a pipe."""
    width = get_terminal_size().columns if sys.stdout.isatty() else 10**6
    return fill(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), title: str = "") -> None:
    """Print a table without borders; the columns named in `right` are numbers."""
    from rich.table import Table

    if title:  # rich would break it at the width of the columns
        click.echo(click.style(title, bold=True))
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = console()
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def size(count: int | None) -> str:
    """Return bytes as people say them, in decimal units: 98.4 MB."""
    if count is None:
        return "?"
    for unit, width in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= width:
            return f"{count / width:.3g} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 2 min 10 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
