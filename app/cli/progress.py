"""Notes and a progress bar, both on stderr, while a command works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click


def note(text: str, *, quiet: bool = False) -> None:
    """Print one line on stderr, unless quiet."""
    if not quiet:
        click.echo(text, err=True)


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that moves a bar with a time estimate; silent where stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def continuing(folder: Path) -> Iterator[None]:
    """Turn an interruption into a line that says how to continue; the folder keeps the finished units."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: repeat the command to continue from {folder}") from None


class Interrupted(click.ClickException):
    """Stopped by the user, exit status 130."""

    exit_code = 130
