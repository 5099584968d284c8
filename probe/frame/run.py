"""The loop of every analysis: units are planned, measured, kept in the run folder and reduced to a result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import UsageError
from probe.frame.analysis import Analysis, Facts, Measured, R, S
from probe.frame.speed import measure as measure_speed
from probe.frame.speed import plain_seconds
from probe.saving.manifest import Manifest, manifest_of
from probe.saving.runs import RunFolder

if TYPE_CHECKING:
    from probe.models import Model

Progress = Callable[[int, int], None]
"""Called with (units done, units expected) after each unit."""


def runner(analysis: type[Analysis[S, R]], settings: type[S]) -> Callable[..., R]:
    """Return the function `run` of an analysis, for notebooks."""

    def run(
        model: Model | None,
        chosen: S | None = None,
        /,
        *,
        out: str | Path | None = None,
        progress: Progress | None = None,
        preset: str | None = None,
        **fields: Any,
    ) -> R:
        if chosen is not None and not isinstance(chosen, settings):
            raise UsageError(f"expected {settings.__name__} of {analysis.name}, got a {type(chosen).__name__}")
        if chosen is not None and preset is not None:
            raise UsageError("preset: expected settings or a preset, got both")
        made: Any = settings.of(preset, **fields) if chosen is None else chosen.changed(**fields)
        return carry_out(analysis(made), model, out=out, progress=progress)

    run.__doc__ = (
        f"Run `{analysis.name}` on a model and return its {analysis.__name__} result.\n\n"
        "settings: an instance, or fields of it by name: run(model, seed=1). preset: whose values replace the\n"
        "defaults. out: a run folder, continued if it exists. progress: called with (units done, units expected).\n"
        "Raises UsageError for settings that cannot be meant."
    )
    return run


def identity(analysis: Analysis[S, R], model: Model | None) -> dict[str, Any]:
    """Return what a run folder must have been made with to be continued; `analysis` has been prepared."""
    about = {}
    if model is not None:
        about = {"weights": model.weights_hash, "dtype": str(model.dtype).removeprefix("torch.")}
    return {"analysis": analysis.name, **about, **analysis.settings.identity(), **analysis.inputs()}


def carry_out(
    analysis: Analysis[S, R],
    model: Model | None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    started: float | None = None,
    pictures: bool = False,
) -> R:
    """Return the result of an analysis: read from its folder where it is finished, else measured and saved there.

    started: `time.monotonic()` at the start of the command, for the seconds outside the measuring. pictures: draw PNGs
    beside the pages too.
    """
    started = time.monotonic() if started is None else started
    analysis.ready(model)
    if out is None:
        try:
            return _measured(analysis, model, None, progress, started)
        finally:
            analysis.tidy()
    with RunFolder(out, identity(analysis, model)) as folder:
        analysis._folder = folder.path
        found = _finished(analysis, folder)
        if found is None:
            found = _measured(analysis, model, folder, progress, started)
            found.save(folder.path, pictures=pictures)
            # the seconds of drawing belong to the run, and are known only now
            outside = time.monotonic() - started - (found.manifest.measuring - folder.before)
            found = replace(found, manifest=replace(found.manifest, outside=outside))
            found.manifest.save(folder.path)
        return found


def _finished(analysis: Analysis[S, R], folder: RunFolder) -> R | None:
    """Return the saved result if it is of these very settings, and shows other runs as they are now."""
    from probe.saving.results import Result

    if not folder.finished or Manifest.load(folder.path).options != folder.encoded(analysis.settings.to_dict()):
        return None
    found: Any = Result.load(folder.path)
    return found if analysis.is_current(found) else None


def _measured(
    analysis: Analysis[S, R], model: Model | None, folder: RunFolder | None, progress: Progress | None, started: float
) -> R:
    facts = Facts.of(model)
    records: dict[str, Any] = {} if folder is None else folder.records()
    prompts = {} if folder is None else folder.prompts()
    before = 0.0 if folder is None else folder.before
    measuring = before
    expected = analysis.expected(facts)
    while pending := [unit for unit in analysis.plan(facts, records) if unit.name not in records]:
        for unit in pending:
            start = time.monotonic()
            measured: Measured = analysis.measure(model, unit)  # type: ignore[arg-type]
            seconds = time.monotonic() - start
            measuring += seconds
            if folder is None:
                records[unit.name] = RunFolder.encoded({"record": measured.data})["record"]
            else:
                records[unit.name] = folder.append(unit.name, measured.data, seconds=seconds, prompts=measured.prompts)
            for prompt in measured.prompts:
                longest = max(prompt.written, prompts.get(prompt.hash, (0, 0))[1])
                prompts[prompt.hash] = (len(prompt.ids), longest)
            if progress is not None:
                progress(len(records), max(expected, len(records)))
    plain = plain_seconds(model, measure_speed(model), prompts.values()) if model is not None and prompts else 0.0
    manifest = manifest_of(
        model, analysis=analysis.name, options=analysis.settings.to_dict(), seed=analysis.settings.seed,
        prompts=prompts, measuring=measuring, passes=measuring / plain if plain else None,
        outside=time.monotonic() - started - (measuring - before),
    )  # fmt: skip
    return analysis.reduce(model, records, manifest)  # type: ignore[arg-type]
