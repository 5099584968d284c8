"""The options that commands share, and the types of option values that click lacks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

DTYPES = ("float32", "bfloat16", "float16", "auto")


class Numbers(click.ParamType):
    """Numbers separated by commas, such as 300,600, as a tuple."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = f"{'integers' if kind is int else 'numbers'}, comma-separated"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected {self.name}, got {value!r}", param, ctx)


class Layers(click.ParamType):
    """Layer numbers and ranges with both ends, such as 0-5,9, as a sorted tuple."""

    name = "layers"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "0-5,9"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        layers: set[int] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                self.fail(f"expected layers such as 0-5,9, got {value!r}", param, ctx)
            layers.update(range(first, last + 1))
        return tuple(sorted(layers))


SHARED: dict[str, click.Option] = {
    "model": click.Option(
        ["--model", "-m"], default="llama", metavar="NAME",
        help="Short name (see `probe models`), Hugging Face id, folder, or .gguf file (default: llama)",
    ),
    "revision": click.Option(
        ["--revision"], metavar="REV", help="Branch, tag or commit of a Hugging Face id (default: its main branch)"
    ),
    "device": click.Option(
        ["--device"], metavar="DEVICE",
        help="Device to run on: cpu, cuda, cuda:1 or mps (default: cuda if there is a GPU, else cpu)",
    ),
    "dtype": click.Option(
        ["--dtype"], type=click.Choice(DTYPES),
        help="Precision of weights and arithmetic; auto is the checkpoint's own (default: float32 on a CPU, else auto)",
    ),
    "seed": click.Option(
        ["--seed"], type=int, default=0,
        help="Seed of every random draw; the same seed gives the same numbers (default: 0)",
    ),
    "top": click.Option(
        ["--top"], type=click.IntRange(min=1), metavar="N",
        help="Rows of each table that are printed; the run folder and --json have all (default: by table)",
    ),
    "layers": click.Option(
        ["--layers"], type=Layers(),
        help="Layers whose rows are printed, such as 0-5,9; the run folder has all (default: all)",
    ),
    "out": click.Option(
        ["--out", "-o"], type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
        help="Run folder; one that exists is continued (default: runs/<command>-<model>-<hash of the settings>)",
    ),
    "dry-run": click.Option(
        ["--dry-run"], is_flag=True, help="Print what would run, with an estimate of time and memory, and stop"
    ),
    "json": click.Option(
        ["--json", "as_json"], is_flag=True, help="Print one JSON object on stdout and nothing else there"
    ),
    "quiet": click.Option(["--quiet", "-q"], is_flag=True, help="Print no progress and no notes on stderr"),
}  # fmt: skip
"""Options that mean the same in every command that has them."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The values typed for the options that every analysis command has; `SHARED` has their help texts.

    started: `time.monotonic()` when the command began.
    """

    model: str
    revision: str | None
    device: str | None
    dtype: str | None
    out: Path | None
    top: int | None
    layers: tuple[int, ...] | None
    dry_run: bool
    as_json: bool
    quiet: bool
    started: float


def shared(*names: str) -> list[click.Parameter]:
    """Return these shared options, in this order."""
    return [SHARED[name] for name in names]
