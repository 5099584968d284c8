"""`probe bench`: measure attention statistics beside plain attention and beside the maps of other tools."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from probe.app.cli.frame import parameter
from probe.app.cli.options import shared
from probe.benchmarks.plan import Settings

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Bytes(click.ParamType):
    """A size such as 20GB, in decimal units, as a number of bytes."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"expected a size such as 20GB or 500MB, got {value!r}", param, ctx)
        return int(float(match[1]) * UNITS[match[2].upper()])


def _parameters() -> list[click.Parameter]:
    own: list[click.Parameter] = []
    for field in fields(Settings):
        if "option" in field.metadata:
            own.append(parameter(field, field.metadata["option"]))
            own[-1].type = Bytes() if field.name == "memory_limit" else own[-1].type
    tests = click.Option(
        ["--tests"], type=click.Path(exists=True, path_type=Path), metavar="PATH",
        help="Test file or folder that must pass before anything is measured (default: a checkout's kernel tests)",
    )  # fmt: skip
    page = click.Option(
        ["--page"], type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        help="Also write the results as a Markdown page to FILE, with pictures in figures/ beside it (default: none)",
    )  # fmt: skip
    return [*shared("model", "revision", "device"), *own, tests, page, *shared("out", "json", "quiet")]


@click.command("bench", params=_parameters())
def command(out: Path | None, tests: Path | None, page: Path | None, as_json: bool, quiet: bool, **typed: Any) -> None:
    """Measure what attention statistics cost.

    The kernel tests run first, and nothing is measured if one fails. Each case then runs in its own process. The cases
    take turns, so that other load on the machine affects all of them alike, and medians are compared. A peer that runs
    out of memory is reported as out of memory. The run is saved: the same command resumes it, or shows its results at
    once if code, libraries and machine are the same.
    """
    import torch

    from probe.app.cli import bench_report
    from probe.app.cli.progress import bar, continuing, note
    from probe.benchmarks.run import check_device, config, run
    from probe.figures.pictures import save_pictures
    from probe.saving.runs import default_folder

    given = {name: value for name, value in typed.items() if value not in (None, ())}
    defaults = {"threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    settings = Settings(**defaults | given)
    check_device(settings)
    folder = out or default_folder("bench", settings.suite, config(settings))
    for line in bench_report.opening(settings, folder):
        click.echo(line, err=as_json)
    with continuing(folder), bar("bench", quiet=quiet) as progress:
        found = run(settings, out=folder, tests=tests, progress=progress, note=lambda text: note(text, quiet=quiet))
    if not all((folder / "figures" / f"{name}.png").exists() for name in found.figures()):
        save_pictures(found.figures(), folder / "figures")
    if page is not None:
        from probe.benchmarks.page import write

        write(found, page)
    if as_json:
        click.echo(bench_report.as_json(found, folder))
    else:
        bench_report.print_found(found, folder)
