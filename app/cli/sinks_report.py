"""The work behind `probe sinks`, and what it says: tables and findings for people, one JSON object for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

import probe
from probe.analyses.sinks import result as sinks
from probe.analyses.sinks import texts as sink_texts
from probe.analyses.sinks.passes import CONDITIONS
from probe.analyses.sinks.result import Settings, Sinks
from probe.app.cli.progress import bar, continuing
from probe.app.cli.sinks import Options
from probe.app.cli.tables import duration, show
from probe.errors import UsageError
from probe.figures.pictures import save_pictures
from probe.figures.style import decimal
from probe.frame.speed import measure, operations
from probe.models import Model
from probe.saving.jsonable import dumps, plain
from probe.saving.manifest import attention
from probe.saving.old_runs import default_folder


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of the command that can be carried out."""

    options: Options
    model: Model
    settings: Settings
    layers: tuple[int, ...]
    folder: Path


def prepare(options: Options) -> Job:
    """The job, with its model loaded; every mistake that can be found before the work is found here."""
    settings = Settings(
        texts=sink_texts.from_files(options.texts) if options.texts else sink_texts.TEXTS,
        rule=options.rule,
        threshold=options.threshold,
        min_rows=options.min_rows,
        epsilon=options.epsilon,
        least=options.least,
        ratio=options.ratio,
        seed=options.seed,
        max_tokens=options.max_tokens,
    )
    model = probe.load(options.model, revision=options.revision, device=options.device, dtype=options.dtype)
    wrong = [layer for layer in options.layers or () if layer >= model.n_layers]
    if wrong:
        raise UsageError(f"--layers: {model.name} has layers 0..{model.n_layers - 1}, got {wrong[0]}")
    folder = options.out or default_folder("sinks", options.model, sinks.run_config(model, settings))
    layers = options.layers or tuple(range(model.n_layers))
    return Job(options=options, model=model, settings=settings, layers=layers, folder=folder)


def carry_out(job: Job) -> Sinks:
    """The sinks, measured or read from the run folder, and saved there."""
    with continuing(job.folder), bar("passes over texts", quiet=job.options.quiet) as progress:
        found = sinks.run(job.model, settings=job.settings, out=job.folder, progress=progress)
    figures = found.figures()
    if not all((job.folder / "figures" / f"{name}.png").exists() for name in figures):
        save_pictures(figures, job.folder / "figures")
    return found


def opening(job: Job) -> list[str]:
    """The first lines: what the name resolved to, what will run, where it is kept."""
    model, source = job.model, job.model.source
    resolved = model.name if source is None else source.note or f"{source.name} ({source.kind})"
    shape = f"{model.n_layers} layers x {model.n_heads} heads ({model.n_kv_heads} KV heads)"
    precision = str(model.dtype).removeprefix("torch.")
    return [
        resolved,
        f"{shape}, {precision} on {model.device}, attention {attention(model)}",
        f"run folder: {job.folder}",
    ]


def print_estimate(job: Job) -> None:
    """What --dry-run prints: passes, tokens and time, measured on this machine."""
    speed = measure(job.model)
    lengths = [len(job.model.tokens(text.text)) for text in job.settings.texts]
    lengths = [min(length, job.settings.max_tokens or length) for length in lengths]
    passes = 2 + len(CONDITIONS) - 1 + job.settings.randoms
    vocabulary = 2 * job.model.vocab * job.model.hf.get_input_embeddings().weight.shape[-1]
    work = sum(operations(job.model, length) + length * vocabulary for length in lengths)
    seconds = passes * work * speed.per_operation
    if job.options.as_json:
        content = {"run": job.folder, "texts": len(lengths), "tokens": sum(lengths), "passes": passes}
        click.echo(dumps(plain(content | {"seconds": seconds}), indent=1))
        return
    click.echo(f"would run {passes} passes over {len(lengths)} texts, {sum(lengths):,} tokens")
    click.echo(f"about {duration(seconds)} at this machine's speed now")


def print_found(job: Job, found: Sinks) -> None:
    """The layers, the sink tokens, what writes the massive dimensions, and the test."""
    click.echo()
    table = found.by_layer()
    rows = [
        [
            str(int(row["layer"])),
            f"{decimal(row['first_mass'])} [{decimal(row['low'])}, {decimal(row['high'])}]",
            decimal(row["later"]),
            decimal(row["value_ratio"]),
            f"{row['largest']:,.0f}",
            f"{row['median']:.2f}",
        ]
        for row in table.to_dict("records")
        if row["layer"] in job.layers
    ]
    columns = ["layer", "to first token", "later sinks", "value norm ratio", "largest |x|", "median |x|"]
    show(columns, rows, right=columns)
    click.echo()
    tokens = found.tokens()
    shown = tokens.head(job.options.top).to_dict("records")
    rows = [
        [row["text"], str(row["position"]), repr(row["token"]), f"{row['share']:.0%}", str(row["layers"])]
        for row in shown
    ]
    show(["text", "position", "token", "heads", "layers where most"], rows, right=["position", "heads"])
    if len(tokens) > len(rows):
        click.echo(f"and {len(tokens) - len(rows)} more tokens that are a sink of some head: --top, or --json")
    writes = found.writes()
    if len(writes):
        click.echo()
        rows = [
            [str(row["dim"]), str(row["layer"]), row["block"], f"{row['change']:+,.0f}", f"{row['after']:,.0f}"]
            for row in writes.to_dict("records")
        ]
        show(["dimension", "layer", "written by", "change", "after it"], rows, right=["layer", "change", "after it"])
    if found.dims:
        click.echo()
        names = [name for name in CONDITIONS if (found.causes["condition"] == name).any()]
        rows = [
            [name, *(f"{found.condition(name, column):.{digits}f}" for column, digits in COLUMNS.items())]
            for name in names
        ]
        show(["first token", "loss", "rise", "attention to it"], rows, right=["loss", "rise", "attention to it"])
    click.echo()
    for line in found.findings:
        click.echo(line)
    first, *others = found.figures()
    click.echo()
    click.echo(f"figure: {job.folder / 'figures' / first}.html, and beside it {', '.join(others)}")


COLUMNS = {"loss": 2, "rise": 3, "attention": 2}
"""The columns of the test that are printed, with their digits."""


def as_json(job: Job, found: Sinks) -> str:
    """The object that --json prints: `heads` of the chosen layers, strongest first."""
    heads = found.to_df()
    return dumps(
        plain(
            {
                "model": job.model.name,
                "run": job.folder,
                "manifest": found.manifest.to_dict(),
                "texts": found.texts.to_dict("records"),
                "first_mass": float(found.first_mass.mean()),
                "sink_rate": found.sink_rate().tolist(),
                "heads": heads[heads["layer"].isin(job.layers)].to_dict("records"),
                "layers": found.by_layer().to_dict("records"),
                "tokens": found.tokens().to_dict("records"),
                "rules": found.rules().to_dict("records"),
                "dims": list(found.dims),
                "writes": found.writes().to_dict("records"),
                "causes": found.causes.to_dict("records"),
                "findings": list(found.findings),
            }
        ),
        indent=1,
    )
