"""`probe sinks`: which tokens heads look at for no reason, which activations make them so, and what these are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from probe.app.cli.old_options import Shared, shared


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What was typed, by option name; each is documented by its help text."""

    max_tokens: int | None
    texts: tuple[Path, ...]
    rule: Literal["absolute", "alpha_over_n", "alpha_times_uniform"]
    threshold: float | None
    min_rows: int
    epsilon: float
    least: float
    ratio: float
    top: int


POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("sinks")
@shared("model", "revision", "device", "dtype", "seed", "out", "layers")
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Text file to look for sinks in; repeat for several.  [default: four short texts that come with probe]",
)
@click.option("--max-tokens", type=click.IntRange(min=2), metavar="N", help="Read only so many tokens of each text.")
@click.option(
    "--rule",
    type=click.Choice(["absolute", "alpha-over-n", "alpha-times-uniform"]),
    default="absolute",
    show_default=True,
    callback=lambda context, parameter, value: value.replace("-", "_"),
    help="A token is a sink of a head when its column mean exceeds the threshold, the threshold over the number of "
    "tokens, or the threshold times what even attention gives.",
)
@click.option("--threshold", type=POSITIVE, help="Of the rule.  [default: .1 for absolute, else 5]")
@click.option(
    "--min-rows",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="How many queries a column mean must be over: short columns are noise.",
)
@click.option(
    "--epsilon",
    type=POSITIVE,
    default=0.3,
    show_default=True,
    help="The sink rate counts heads whose column mean of the first token exceeds this.",
)
@click.option("--least", type=POSITIVE, default=100, show_default=True, help="A massive activation exceeds this.")
@click.option(
    "--ratio",
    type=POSITIVE,
    default=1000,
    show_default=True,
    help="A massive activation is so many times the median of its layer.",
)
@click.option("--top", type=click.IntRange(min=1), default=12, show_default=True, help="How many sink tokens to print.")
@shared("dry-run", "json", "quiet")
def command(**typed: Any) -> None:
    """Find attention sinks and the massive activations behind them.

    How much attention every head gives to the first token, which other tokens are sinks, which dimensions of the
    residual stream are massive, and where they are written and erased. Then the largest is set to zero, and to its
    mean, on the first token, beside control dimensions, and the loss and the attention say what it was for. The run is
    saved; the same command again continues it, or shows it at once.
    """
    options = Options(**typed)
    from probe.app.cli import sinks_report

    job = sinks_report.prepare(options)
    for line in sinks_report.opening(job):
        click.echo(line, err=options.as_json)
    if options.dry_run:
        sinks_report.print_estimate(job)
        return
    found = sinks_report.carry_out(job)
    if options.as_json:
        click.echo(sinks_report.as_json(job, found))
    else:
        sinks_report.print_found(job, found)
