"""`probe heads`: which heads retrieve, induce, copy and sink, and whether the model still answers without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from probe.app.cli.old_options import Numbers, Shared, shared
from probe.errors import UsageError

KINDS = ("retrieval", "induction", "previous-token", "duplicate-token", "copying", "sink")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What was typed, by option name; each is documented by its help text."""

    max_tokens: int | None
    kinds: tuple[str, ...]
    lengths: tuple[int, ...] | None
    depths: tuple[float, ...] | None
    samples: int
    needles: Path | None
    haystacks: tuple[Path, ...]
    prompt: Literal["chat", "plain"]
    score: Literal["set", "per_step"]
    until_stable: bool
    top: int
    validate: bool
    fills: tuple[Literal["zero", "uniform"], ...]
    phase: Literal["decode", "all"]
    compare: Path | None

    @property
    def retrieves(self) -> bool:
        """Whether needles are to be asked."""
        return "all" in self.kinds or "retrieval" in self.kinds

    @property
    def other_kinds(self) -> tuple[str, ...]:
        """The scores asked for beside retrieval, as the catalogue names them."""
        wanted = KINDS if "all" in self.kinds else self.kinds
        return tuple(kind.replace("-", "_") for kind in KINDS if kind in wanted and kind != "retrieval")

    def __post_init__(self) -> None:
        for given, name in (
            (self.validate, "--validate"), (self.lengths, "--lengths"), (self.depths, "--depths"),
            (self.needles, "--needles"), (self.haystacks, "--haystack"), (self.until_stable, "--until-stable"),
            (self.max_tokens, "--max-tokens"),
        ):  # fmt: skip
            if given and not self.retrieves:
                raise UsageError(f"{name} needs --kind retrieval, got --kind {' --kind '.join(self.kinds)}")


@click.command("heads")
@shared("model", "revision", "device", "dtype", "seed", "out", "layers", "max-tokens")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*KINDS, "all"]),
    default=("all",),
    show_default=True,
    help="Which score; repeat for several.",
)
@click.option("--lengths", type=Numbers(int), help="Tokens of prose and needle.  [default: 300,600,1000,1500]")
@click.option("--depths", type=Numbers(float), help="Percent of the prose before the needle.  [default: 10,50,90]")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Needles of each family per length and depth, each in other prose.",
)
@click.option(
    "--needles",
    type=FILE,
    help='JSON lines with "needle", "question" and "answer", instead of the built-in families.',
)
@click.option(
    "--haystack",
    "haystacks",
    type=FILE,
    multiple=True,
    help="Text file to hide needles in; repeat for several.  [default: the language reference in your Python]",
)
@click.option(
    "--prompt",
    type=click.Choice(["chat", "plain"]),
    default="chat",
    show_default=True,
    help="The model's chat template, or the official plain text.",
)
@click.option(
    "--score",
    type=click.Choice(["set", "per_step"]),
    default="set",
    show_default=True,
    help="Share of distinct answer tokens copied, or the released code's count over steps.",
)
@click.option("--until-stable", is_flag=True, help="Stop once the top-20 list no longer changes.")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many heads to print.")
@click.option(
    "--validate",
    is_flag=True,
    help="Prune the heads found, and random ones, and see whether the model still answers.",
)
@click.option(
    "--fill",
    "fills",
    multiple=True,
    type=click.Choice(["zero", "uniform"]),
    default=("zero", "uniform"),
    show_default=True,
    help="With --validate: a pruned head writes nothing, or the mean of what it sees (the official mask).",
)
@click.option(
    "--phase",
    type=click.Choice(["decode", "all"]),
    default="decode",
    show_default=True,
    help="With --validate: prune while answering only, or while reading too.",
)
@click.option(
    "--compare",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Another run of this command, to compare scores with.",
)
@shared("dry-run", "json", "quiet")
def command(**typed: Any) -> None:
    """Find the heads that do things.

    A fact is hidden in prose and the model is asked for it: heads that look at each answer token while the model says
    it are retrieval heads. Beside them stand induction, previous-token, duplicate-token, copying and sink scores. The
    run is saved; the same command again continues it, or shows it at once.
    """
    options = Options(**typed)
    from probe.app.cli import heads_report, heads_run

    job = heads_run.prepare(options)
    for line in heads_report.opening(job):
        click.echo(line, err=options.as_json)
    if options.dry_run:
        heads_report.print_estimate(job)
        return
    found = heads_run.carry_out(job)
    if options.as_json:
        click.echo(heads_report.as_json(found))
    else:
        heads_report.print_found(found)
