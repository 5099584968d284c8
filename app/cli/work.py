"""Every analysis command loads a model, says what will run, runs or estimates it, and prints or writes the result."""

from __future__ import annotations

from pathlib import Path

import click

import probe
from probe.analyses import analysis_of
from probe.app.cli.options import Frame
from probe.app.cli.progress import bar, continuing, note
from probe.app.cli.report import document, print_result
from probe.app.cli.tables import duration, show, size
from probe.errors import UsageError
from probe.frame.analysis import Analysis, Cost, Facts, Need
from probe.frame.run import carry_out, identity
from probe.frame.settings import Settings
from probe.frame.speed import measure
from probe.models import Model
from probe.saving.jsonable import dumps, plain
from probe.saving.manifest import attention
from probe.saving.results import Result
from probe.saving.runs import default_folder


def work(name: str, settings: Settings, frame: Frame) -> None:
    """Carry out the command of one analysis."""
    analysis = analysis_of(name)(settings)
    model = None
    if analysis.need() is not Need.NOTHING:
        model = probe.load(frame.model, revision=frame.revision, device=frame.device, dtype=frame.dtype)
        _check_layers(model, frame)
    analysis.ready(model)
    folder = frame.out or default_folder(name, frame.model if model else "no-model", identity(analysis, model))
    for line in _opening(analysis, model, folder):
        click.echo(line, err=frame.as_json)
    if frame.dry_run:
        _print_estimate(analysis, model, folder, frame)
        return
    with continuing(folder), bar(name, quiet=frame.quiet) as progress:
        found = carry_out(
            analysis, model, out=folder, progress=progress, started=frame.started, pictures=True
        )  # fmt: skip
    if frame.as_json:
        click.echo(dumps(document(found, folder, layers=frame.layers), indent=1))
        return
    click.echo()
    print_result(found, folder, top=frame.top, layers=frame.layers)
    note(_spent(found), quiet=frame.quiet)


def _check_layers(model: Model, frame: Frame) -> None:
    wrong = [layer for layer in frame.layers or () if layer >= model.n_layers]
    if wrong:
        raise UsageError(f"--layers: {model.name} has layers 0..{model.n_layers - 1}, got {wrong[0]}")


def _opening(analysis: Analysis, model: Model | None, folder: Path) -> list[str]:
    """Return the first lines: what the name resolved to, what will run, where it is kept."""
    lines = []
    if model is not None:
        source = model.source
        lines.append(model.name if source is None else source.note or f"{source.name} ({source.kind})")
        shape = f"{model.n_layers} layers x {model.n_heads} heads ({model.n_kv_heads} KV heads)"
        precision = str(model.dtype).removeprefix("torch.")
        lines.append(f"{shape}, {precision} on {model.device}, attention {attention(model)}")
    if asked := analysis.describe():
        lines.append(asked)
    return [*lines, f"run folder: {folder}"]


def _print_estimate(analysis: Analysis, model: Model | None, folder: Path, frame: Frame) -> None:
    """Print what --dry-run promises: units, seconds, passes and memory, at the speed measured now."""
    units = analysis.expected(Facts.of(model))
    cost: Cost | None = None if model is None else analysis.estimate(model, measure(model))
    if frame.as_json:
        content = {"settings": analysis.settings.to_dict(), "folder": folder, "units": units}
        if cost is not None:
            parts = [{"part": name, "seconds": seconds} for name, seconds in cost.parts]
            content |= {"seconds": cost.seconds, "passes": cost.passes, "memory": cost.memory, "parts": parts}
        click.echo(dumps(plain(content), indent=1))
        return
    click.echo()
    if cost is None:
        click.echo(f"would measure {units} units; how long that takes is not known")
        return
    if len(cost.parts) > 1:
        show(("would run", "about"), [(part, duration(seconds)) for part, seconds in cost.parts], right=("about",))
    passes = "" if cost.passes is None else f", {cost.passes:.3g} times the plain reading of its tokens"
    click.echo(
        f"{units} units, about {duration(cost.seconds)} at this machine's speed now{passes}; "
        f"{size(cost.memory)} of memory at the peak"
    )


def _spent(found: Result) -> str:
    """Say what the run took."""
    manifest = found.manifest
    passes = "" if manifest.passes is None else f", {manifest.passes:.3g} times the plain reading of its tokens"
    return f"measured in {duration(manifest.measuring)}{passes}; {duration(manifest.outside)} beside the measuring"
