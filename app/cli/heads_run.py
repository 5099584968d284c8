"""The work behind `probe heads`: what was typed becomes calls of the analyses, in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe
from probe.analyses.heads import comparison, needles, validation
from probe.analyses.heads import retrieval as retrieval_heads
from probe.analyses.heads.catalogue import HeadCatalogue, catalogue
from probe.analyses.heads.comparison import Comparison
from probe.analyses.heads.needle_runs import Plan
from probe.analyses.heads.retrieval import RetrievalHeads
from probe.analyses.heads.validation import Validation
from probe.analyses.texts import haystacks
from probe.app.cli.heads import Options
from probe.app.cli.progress import bar, continuing
from probe.errors import UsageError
from probe.figures.pictures import save_pictures
from probe.models import Model
from probe.saving.old_runs import RunFolder, default_folder
from probe.saving.results import Result

KS = (5, 10, 20, 30)
"""How many of the best heads --validate prunes, where the model has twice as many."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of the command that can be carried out.

    layers: those to report. asked: the needle questions as `retrieval_heads.run` takes them, `plan` what they make;
    None where retrieval is not asked for. other: the scores to compare with. config: what makes this run this run.
    """

    options: Options
    model: Model
    layers: tuple[int, ...]
    asked: Mapping[str, Any] | None
    plan: Plan | None
    other: HeadCatalogue | None
    folder: Path
    config: Mapping[str, Any]

    @property
    def validation_name(self) -> str:
        """The folder of a validation with these options, inside the run folder."""
        return f"validation-{'-'.join(self.options.fills)}-{self.options.phase}"

    @property
    def ks(self) -> list[int]:
        """How many heads a validation prunes; the random control needs as many others."""
        return [k for k in KS if 2 * k <= self.model.n_layers * self.model.n_heads]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the command found; the parts that were not asked for are None."""

    job: Job
    catalogue: HeadCatalogue
    retrieval: RetrievalHeads | None = None
    validation: Validation | None = None
    comparison: Comparison | None = None

    @property
    def parts(self) -> dict[str, Result]:
        """What was found, by the name of its folder in the run folder."""
        parts = {
            "retrieval": self.retrieval,
            "catalogue": self.catalogue,
            self.job.validation_name: self.validation,
            "comparison": self.comparison,
        }
        return {name: result for name, result in parts.items() if result is not None}


def prepare(options: Options) -> Job:
    """The job, with its model loaded; every mistake that can be found before the work is found here."""
    other = None if options.compare is None else _scores_of(options.compare)
    model = probe.load(options.model, revision=options.revision, device=options.device, dtype=options.dtype)
    asked = _asked(options) if options.retrieves else None
    plan = None if asked is None else retrieval_heads.options(**asked)
    if plan is not None:
        plan.check(model)
    config = {
        "kinds": list(options.other_kinds),
        "seed": options.seed,
        "weights": model.weights_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "retrieval": plan
        and retrieval_heads.run_config(model, plan, score=options.score, until_stable=options.until_stable),
    }
    return Job(
        options=options,
        model=model,
        layers=_layers(options, model),
        asked=asked,
        plan=plan,
        other=other,
        folder=options.out or default_folder("heads", options.model, config),
        config=config,
    )


def carry_out(job: Job) -> Found:
    """Everything the job asks for, measured or read from its folder, and saved there."""
    options, model, folder = job.options, job.model, job.folder
    retrieval = checked = compared = None
    with ExitStack() as stack:
        stack.enter_context(continuing(folder))
        stack.enter_context(RunFolder(folder, job.config))
        if job.asked is not None:
            with bar("needles", quiet=options.quiet) as progress:
                retrieval = retrieval_heads.run(
                    model, **job.asked, score=options.score, until_stable=options.until_stable,
                    out=folder / "retrieval", progress=progress,
                )  # fmt: skip
            _picture(retrieval, folder / "retrieval")
        table = _catalogue(job, retrieval)
        if retrieval is not None and options.validate:
            checked = _validation(job, retrieval)
        if job.other is not None:
            compared = comparison.compare(table, job.other, kind=next(iter(table.scores)))
            _picture(compared, compared.save(folder / "comparison"))
    return Found(job=job, retrieval=retrieval, catalogue=table, validation=checked, comparison=compared)


def _catalogue(job: Job, retrieval: RetrievalHeads | None) -> HeadCatalogue:
    folder = job.folder / "catalogue"
    if (folder / "result.json").exists():
        return HeadCatalogue.load(folder)
    with bar("other scores", quiet=job.options.quiet) as progress:
        table = catalogue(
            job.model, kinds=job.options.other_kinds, retrieval=retrieval, seed=job.options.seed,
            haystack=None if job.asked is None else job.asked["haystack"], progress=progress,
        )  # fmt: skip
    _picture(table, table.save(folder))
    return table


def _validation(job: Job, retrieval: RetrievalHeads) -> Validation:
    options = job.options
    folder = job.folder / job.validation_name
    with bar("pruning", quiet=options.quiet) as progress:
        checked = validation.validate(
            job.model, retrieval, ks=job.ks, fills=options.fills, phase=options.phase, seed=options.seed + 1,
            prompt=options.prompt, haystack=None if job.asked is None else job.asked["haystack"], out=folder,
            progress=progress,
        )  # fmt: skip
    _picture(checked, folder)
    return checked


def _picture(result: Result, folder: Path) -> None:
    """PNGs beside the pages, where there is a browser to draw them and they are not there yet."""
    figures = result.figures()
    if not all((folder / "figures" / f"{name}.png").exists() for name in figures):
        save_pictures(figures, folder / "figures")


def _asked(options: Options) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "seed": options.seed,
        "samples": options.samples,
        "prompt": options.prompt,
        "haystack": haystacks.from_files(options.haystacks) if options.haystacks else None,
    }
    if options.lengths is not None:
        asked["lengths"] = options.lengths
    if options.depths is not None:
        asked["depths"] = options.depths
    if options.needles is not None:
        asked["needles"] = needles.read_needles(options.needles)
    if options.max_tokens is not None:
        lengths = retrieval_heads.options(**asked).lengths
        asked["lengths"] = tuple(length for length in lengths if length <= options.max_tokens)
        if not asked["lengths"]:
            given = ",".join(map(str, lengths))
            raise UsageError(f"--max-tokens {options.max_tokens} leaves none of --lengths {given}")
    return asked


def _layers(options: Options, model: Model) -> tuple[int, ...]:
    every = tuple(range(model.n_layers))
    wrong = [layer for layer in options.layers or () if layer not in every]
    if wrong:
        raise UsageError(f"--layers: {model.name} has layers 0..{model.n_layers - 1}, got {wrong[0]}")
    return options.layers or every


def _scores_of(folder: Path) -> HeadCatalogue:
    """The scores of another run of this command."""
    if not (folder / "catalogue" / "result.json").exists():
        raise UsageError(f"--compare: expected a finished run of probe heads, got {folder}")
    return HeadCatalogue.load(folder / "catalogue")
