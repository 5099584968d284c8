"""`probe intervene`: change attention on a task, and see what the change does beside its controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from probe.app.cli.old_options import Shared, shared

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What was typed, by option name; each is documented by its help text."""

    task: Path | None
    preset: str
    beta: float
    k: int
    draws: int
    sweep: int


@click.group("intervene")
def command() -> None:
    """Change attention and see whether the model does better, beside the controls that would refute it."""


@command.command("act")
@shared("model", "revision", "device", "dtype", "seed", "out", "layers")
@click.option(
    "--task",
    type=FILE,
    help='JSON lines with "prompt", "labels", "answer" and "split" ("calibration" and others).  [default: reviews]',
)
@click.option(
    "--preset",
    type=click.Choice(["release", "paper"]),
    default="release",
    show_default=True,
    help="Sinks are columns with a mean above 0.1, as in the released code, or above 5 / N, as in the paper.",
)
@click.option(
    "--beta",
    type=click.FloatRange(0, 1),
    default=0.4,
    show_default=True,
    help="Share of its weight a sink keeps.",
)
@click.option("--heads", "k", type=click.IntRange(min=1), default=30, show_default=True, help="How many to calibrate.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Sets of random heads to compare with.",
)
@click.option(
    "--sweep",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="On how many random heads to check the gradient filter by a run of the calibration set each; 0 for none.",
)
@shared("dry-run", "json", "quiet")
def act(**typed: Any) -> None:
    """Calibrate attention sinks (ACT) on a classification task.

    One backward pass over the calibration split ranks all heads by how much calibrating their sinks lowers the loss.
    The best are then calibrated on every split, beside random heads, the worst, all, and a label bias fitted on the
    same split without touching the model: if that does as well, the gain is a shift of the label prior. The run is
    saved; the same command again continues it, or shows it at once.
    """
    options = Options(**typed)
    from probe.app.cli import act_run

    act_run.main(options)
