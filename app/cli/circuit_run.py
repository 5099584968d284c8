"""The work behind `probe circuit`: each analysis in its run folder, and what to print of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import probe
from probe.analyses.circuits import costs
from probe.analyses.circuits.edges import result as edge_circuits
from probe.analyses.circuits.repair import result as repairs
from probe.analyses.circuits.reuse import result as comparisons
from probe.analyses.circuits.search import result as circuits
from probe.app.cli.circuit import EdgeOptions, RepairOptions, ReuseOptions, SearchOptions
from probe.app.cli.old_options import Shared
from probe.app.cli.progress import bar, continuing, note
from probe.app.cli.tables import duration, show, size
from probe.figures.pictures import save_pictures
from probe.saving.jsonable import dumps, plain
from probe.saving.old_runs import RunFolder, default_folder
from probe.saving.results import Result

SHOWN = {
    "stage": "stage",
    "name": "head",
    "percent": "effect, %",
    "percent_error": "±",
    "raw": "logits",
    "role": "role",
}


def search(task: str, options: SearchOptions) -> None:
    """The circuit of a task."""
    model = _model(options)
    settings = circuits.Settings(
        task=task, prompts=options.prompts, seed=options.seed, options=options.chosen, top=options.top,
        stages=options.stages, freeze_mlps=options.freeze_mlps, fill=options.fill, draws=options.draws,
    )  # fmt: skip
    made = circuits.prompts(model, settings)
    config = circuits.run_config(model, settings, made)
    folder = options.out or default_folder(f"circuit-{Path(task).stem}", options.model, config)
    asked = f"{len(made)} pairs of {made.name}, {settings.stages} stages"
    if not _opened(model, options, asked, folder, lambda: costs.search(model, settings, made.pairs(model))):
        return
    with continuing(folder), RunFolder(folder, config) as run_folder, bar("steps", quiet=options.quiet) as progress:
        found = circuits.run(model, settings=settings, task=made, out=run_folder, progress=progress)
    if _closed(found, folder, options, found.findings):
        return
    _print_rows(found.to_df()[list(SHOWN)].rename(columns=SHOWN))
    if len(found.tests):
        click.echo()
        tests = found.tests.groupby(["test", "what"], sort=False)[["heads", "ld", "value"]].mean().reset_index()
        _print_rows(tests[tests["test"] != "minimality"].rename(columns={"what": "of", "ld": "LD"}))
    _say(found.findings, folder, options)


def edges(options: EdgeOptions) -> None:
    """The edges of a task's circuit."""
    model = _model(options)
    settings = edge_circuits.Settings(
        task=options.task, prompts=options.prompts, seed=options.seed, options=options.chosen, method=options.method,
        steps=options.steps, draws=options.draws, exact=options.exact,
    )  # fmt: skip
    made = edge_circuits.prompts(model, settings)
    config = edge_circuits.run_config(model, settings, made)
    folder = options.out or default_folder(f"edges-{Path(options.task).stem}", options.model, config)
    asked = f"{len(made)} pairs of {made.name}, {settings.method}"
    if not _opened(model, options, asked, folder, lambda: costs.edges(model, settings, made.pairs(model))):
        return
    with continuing(folder), RunFolder(folder, config) as run_folder, bar("steps", quiet=options.quiet) as progress:
        found = edge_circuits.run(model, settings=settings, task=made, out=run_folder, progress=progress)
    if _closed(found, folder, options, found.findings):
        return
    best = found.to_df().head(10).drop(columns="raw").rename(columns={"standard_error": "± logits"})
    _print_rows(best.rename(columns={"percent": "score, %"}))
    for by in edge_circuits.RANKINGS:
        click.echo(f"\nranked by {by}:")
        _print_rows(found.curve(by).to_df())
    _say(found.findings, folder, options)


def reuse(options: ReuseOptions) -> None:
    """Two circuits compared."""
    model = _model(options)
    settings = circuits.Settings(
        prompts=options.prompts, seed=options.seed, top=options.top, freeze_mlps=options.freeze_mlps, stages=2,
        tests=False,
    )  # fmt: skip
    plan = comparisons.searches(options.first, options.second, control=options.control, settings=settings)
    # what cannot be asked is refused before anything runs
    made = {name: circuits.prompts(model, own) for name, own in plan.items()}
    config = {"weights": model.weights_hash, "tasks": [options.first, options.second, options.control]}
    folder = options.out or default_folder("reuse", options.model, config | asdict(settings))
    asked = f"{options.first} and {options.second}, control {options.control}, {options.prompts} pairs each"

    def cost() -> costs.CircuitCost:
        return costs.together([costs.search(model, own, made[name].pairs(model)) for name, own in plan.items()])

    if not _opened(model, options, asked, folder, cost):
        return
    with continuing(folder), bar("steps", quiet=options.quiet) as progress:
        found = comparisons.run(
            model, options.first, options.second, control=options.control, k=options.top, settings=settings,
            out=folder, progress=progress,
        )  # fmt: skip
    if _closed(found, folder, options, found.findings):
        return
    _print_rows(found.overlaps)
    click.echo(f"\nshared on the logits: {' '.join(found.shared())}\n")
    names = {comparisons.FIRST: options.first, comparisons.SECOND: options.second}
    _print_rows(found.roles().rename(columns=names))
    _say(found.findings, folder, options)


def repair(options: RepairOptions) -> None:
    """Colored Objects repaired with IOI's mechanism."""
    model = _model(options)
    settings = repairs.Settings(prompts=options.prompts, seed=options.seed, draws=options.draws, options=options.chosen)
    folder = options.out or default_folder("repair", options.model, repairs.run_config(model, settings))
    asked = f"{options.prompts} pairs of {settings.target}"
    if not _opened(
        model, options, asked, folder, lambda: costs.repairing(model, settings, repairs.target(model, settings))
    ):
        return
    with continuing(folder), bar("steps", quiet=options.quiet) as progress:
        found = repairs.run(model, settings=settings, out=folder, progress=progress)
    if _closed(found, folder, options, found.findings):
        return
    _print_rows(found.to_df())
    _say(found.findings, folder, options)


def _model(options: Shared) -> probe.Model:
    return probe.load(options.model, revision=options.revision, device=options.device, dtype=options.dtype)


def _opened(
    model: probe.Model, options: Shared, asked: str, folder: Path, cost: Callable[[], costs.CircuitCost]
) -> bool:
    """Say what will run, or on a dry run what it would cost; whether it is to run."""
    click.echo(f"{model}\n{asked}; folder {folder}", err=options.as_json)
    if not options.dry_run:
        return True
    expected = cost()
    if options.as_json:
        content = {"folder": str(folder), "heads": model.n_layers * model.n_heads}
        click.echo(dumps(content | {"seconds": expected.seconds, "memory": expected.memory}))
    else:
        click.echo(f"as much as reading {expected.passes:,.0f} prompts")
        click.echo(f"about {duration(expected.seconds)} at this machine's speed now, {size(expected.memory)} of memory")
    return False


def _closed(found: Result, folder: Path, options: Shared, findings: Sequence[str]) -> bool:
    """Save the pictures, and print everything as JSON where that is asked for; whether it was."""
    save_pictures(found.figures(), folder / "figures")
    if options.as_json:
        click.echo(dumps(found.to_dict() | plain({"findings": list(findings), "folder": str(folder)})))
    return options.as_json


def _say(findings: Sequence[str], folder: Path, options: Shared) -> None:
    click.echo()
    for line in findings:
        click.echo(line)
    note(f"saved in {folder}", quiet=options.quiet)


def _print_rows(table: Any) -> None:
    """A data frame as a table, numbers to the right."""
    records: list[Mapping[str, Any]] = table.to_dict("records")
    numbers = [str(column) for column in table.columns if not isinstance(records[0][column], str)] if records else []
    show(
        [str(column) for column in table.columns],
        [[_text(value) for value in row.values()] for row in records],
        right=numbers,
    )


def _text(value: Any) -> str:
    """Three digits, none of them behind the third decimal: a table holds nothing that matters less."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.3f}".replace("-0.000", "0.000")
