"""`probe bench`: measure attention statistics beside plain attention and beside the maps of other tools."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from probe.app.cli.options import Numbers, shared

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
POSITIVE = click.IntRange(min=1)


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


option = partial(click.Option, show_default=True)


@click.command(
    "bench",
    params=[
        option(
            ["--suite"],
            type=click.Choice(["kernels", "model", "all"]),
            default="kernels",
            help="Suite to measure: attention alone, forward passes of --model, or both.",
        ),
        option(["--lengths"], type=Numbers(int), default="512,2048,4096,8192", help="Lengths of the texts, in tokens."),
        option(
            ["--repeats"],
            type=POSITIVE,
            default=7,
            help="Timed rounds, after one that is not counted. Peers that build every map run 3 at most.",
        ),
        option(["--threads"], type=POSITIVE, help="Threads of each case.  [default: torch's number]"),
        option(
            ["--dtype"],
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            help="Precision of inputs and weights.",
        ),
        *shared("device", "model", "revision"),
        option(["--batch"], type=POSITIVE, default=1, help="Texts in a batch, in the kernel cases."),
        option(["--heads"], type=POSITIVE, default=9, help="Query heads of the kernel cases."),
        option(["--kv-heads"], type=POSITIVE, default=3, help="Key-value heads of the kernel cases."),
        option(["--head-dim"], type=POSITIVE, default=64, help="Head size of the kernel cases."),
        option(
            ["--memory-limit"],
            type=Bytes(),
            default="20GB",
            help="Memory that one case may take. A case that needs more is ended and reported as such.",
        ),
        option(
            ["--timeout"],
            type=click.FloatRange(min=0, min_open=True),
            default=600.0,
            metavar="SECONDS",
            help="Seconds that one repetition may take. A case that takes longer is ended and reported as such.",
        ),
        option(
            ["--case", "only"],
            multiple=True,
            metavar="NAME",
            help="Measure this case beside the plain one; repeat for several. Kernels: native, blocked, triton, "
            "products, dense, flex. Models: stats, act, eager, bridge, nnsight.  [default: all]",
        ),
        option(
            ["--tests"],
            type=click.Path(exists=True, path_type=Path),
            metavar="PATH",
            help="Test file or folder that must pass before anything is measured.  [default: the kernel tests, in a "
            "checkout]",
        ),
        option(
            ["--page"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Also write the results as a Markdown page to FILE, with pictures in figures/ beside it.",
        ),
        *shared("seed", "out", "json", "quiet"),
    ],
)
def command(
    threads: int | None, device: str | None, out: Path | None, tests: Path | None, page: Path | None,
    as_json: bool, quiet: bool, **typed: Any,
) -> None:  # fmt: skip
    """Measure what attention statistics cost.

    The kernel tests run first, and nothing is measured if one fails. Each case then runs in its own process. The cases
    take turns, so that other load on the machine affects all of them alike, and medians are compared. A peer that runs
    out of memory is reported as out of memory. The run is saved: the same command resumes it, or shows its results at
    once if code, libraries and machine are the same.
    """
    import torch

    from probe.app.cli import bench_report
    from probe.app.cli.progress import bar, continuing, note
    from probe.benchmarks.plan import Settings
    from probe.benchmarks.run import check_device, config, run
    from probe.figures.pictures import save_pictures
    from probe.saving.runs import default_folder

    settings = Settings(
        threads=threads or torch.get_num_threads(),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        **typed,
    )
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
