"""The options that commands share. A command takes those it reads: `@shared("model", "seed", ...)`."""

from __future__ import annotations

import re
from collections.abc import Callable
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


SHARED: dict[str, Callable[..., Any]] = {
    "model": click.option(
        "--model", "-m", default="llama", show_default=True, metavar="NAME",
        help="Short name (see `probe models`), Hugging Face id, folder, or .gguf file.",
    ),
    "revision": click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hugging Face id."),
    "device": click.option(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]",
    ),
    "dtype": click.option(
        "--dtype", type=click.Choice(DTYPES), help="Weights and arithmetic; auto is the checkpoint's own.  [default: "
        "float32 on a CPU, else auto]",
    ),
    "seed": click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same numbers."),
    "out": click.option(
        "--out", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
        help="Run folder. One that exists is continued.  [default: runs/<command>-<model>-<hash of the options>]",
    ),
    "layers": click.option("--layers", type=Layers(), help="Report the heads of these layers only.  [default: all]"),
    "max-tokens": click.option(
        "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Leave out lengths above this.",
    ),
    "dry-run": click.option(
        "--dry-run", is_flag=True, help="Print what would run, with an estimate of memory and time, and stop.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there."),
    "quiet": click.option("--quiet", "-q", is_flag=True, help="No progress and no notes on stderr."),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What was typed of the options that every command which runs a model has; `SHARED` has their help texts."""

    model: str
    revision: str | None
    device: str | None
    dtype: str | None
    seed: int
    out: Path | None
    layers: tuple[int, ...] | None = None
    dry_run: bool
    as_json: bool
    quiet: bool


def shared(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command these shared options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = SHARED[name](command)
        return command

    return decorate
