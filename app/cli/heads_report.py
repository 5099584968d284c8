"""What `probe heads` says: tables and findings for people, one JSON object for programs."""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from typing import Any

import click

from probe.analyses.heads.catalogue import HeadCatalogue
from probe.analyses.heads.costs import estimate
from probe.analyses.heads.validation import CLOSED_BOOK, NEEDLES, PROSE, Validation
from probe.app.cli.heads_run import Found, Job
from probe.app.cli.tables import duration, show, size
from probe.figures.style import decimal
from probe.frame.scores import label
from probe.heads import Head
from probe.saving.jsonable import dumps, plain
from probe.saving.manifest import attention

GROUPS = ("top", "random", "same layers")
PRUNED = {
    NEEDLES: "Held-out needles answered, heads pruned {where}:",
    CLOSED_BOOK: "Closed-book questions answered, heads pruned {where}:",
    PROSE: "Loss on prose in nats per token, heads pruned {where}:",
}
"""What is printed of a validation, task by task."""


def opening(job: Job) -> list[str]:
    """The first lines: what the name resolved to, what will run, where it is kept."""
    model = job.model
    source = model.source
    resolved = model.name if source is None else source.note or f"{source.name} ({source.kind})"
    shape = f"{model.n_layers} layers x {model.n_heads} heads ({model.n_kv_heads} KV heads)"
    precision = str(model.dtype).removeprefix("torch.")
    return [
        resolved,
        f"{shape}, {precision} on {model.device}, attention {attention(model)}",
        f"run folder: {job.folder}",
    ]


def print_estimate(job: Job) -> None:
    """What --dry-run prints: needles, tokens, time and memory, measured on this machine."""
    conditions = 1 + 3 * len(job.ks) * len(job.options.fills) if job.options.validate else 0
    cost = estimate(job.model, plan=job.plan, kinds=job.options.other_kinds, conditions=conditions)
    if job.options.as_json:
        content = {"model": job.model.name, "run": job.folder, **asdict(cost), "seconds": cost.seconds}
        click.echo(dumps(plain(content), indent=1))
        return
    parts = [
        (f"{cost.needles} needles, {cost.tokens:,} tokens to read", cost.needle_seconds, job.plan is not None),
        ("the other scores", cost.score_seconds, bool(job.options.other_kinds)),
        (f"pruning, {conditions} conditions a sample", cost.validation_seconds, job.options.validate),
    ]
    click.echo()
    rows = [(name, duration(seconds)) for name, seconds, asked in parts if asked]
    show(("would run", "about"), rows, right=("about",))
    click.echo(f"about {duration(cost.seconds)} at this machine's speed now, {size(cost.memory)} of memory at the peak")


def print_found(found: Found) -> None:
    """The table of heads, what it means, and where the figures are."""
    click.echo()
    if found.retrieval is not None:
        click.echo(_retrieved(found))
        click.echo()
    _print_heads(found)
    lines = [*found.catalogue.findings, *found.catalogue.notes]
    if found.comparison is not None:
        lines.append(found.comparison.finding)
    if lines:
        click.echo()
    for line in lines:
        click.echo(line)
    if found.validation is not None:
        click.echo()
        _print_validation(found.validation)
    click.echo()
    for name, result in found.parts.items():
        first, *others = result.figures()
        beside = f", and beside it {', '.join(others)}" if others else ""
        click.echo(f"figure: {found.job.folder / name / 'figures' / first}.html{beside}")


def as_json(found: Found) -> str:
    """The object that --json prints; `heads` holds every head of the chosen layers, best first."""
    content = found.catalogue.to_dict()
    main = found.retrieval or found.catalogue
    layers = set(found.job.layers)
    return dumps(
        plain(
            {
                "model": found.job.model.name,
                "run": found.job.folder,
                "manifest": main.manifest.to_dict(),
                "heads": [head for head in content["heads"] if head["layer"] in layers],
                "accuracy": None if found.retrieval is None else found.retrieval.accuracy(),
                "correlations": content["correlations"],
                "findings": content["findings"],
                "notes": content["notes"],
                "validation": None if found.validation is None else _without_details(found.validation),
                "comparison": None if found.comparison is None else found.comparison.to_dict(),
            }
        ),
        indent=1,
    )


def _without_details(checked: Validation) -> dict[str, Any]:
    """The validation without its rows per sample, which the run folder holds."""
    return {name: value for name, value in checked.to_dict().items() if name != "details"}


def _retrieved(found: Found) -> str:
    assert found.retrieval is not None
    result = found.retrieval
    accuracy = result.accuracy()
    heads = result.retrieval_heads()
    early = ", then stopped: the top 20 were stable" if result.stopped_early else ""
    return (
        f"The model retrieved {accuracy['retrieved']} of {accuracy['asked']} needles{early}. "
        f"{len(heads)} of {result.n_heads} heads ({len(heads) / result.n_heads:.1%}) are retrieval heads "
        f"(score at least .1); {len(result.always_active())} copied from every needle."
    )


def _print_heads(found: Found) -> None:
    catalogue, layers, top = found.catalogue, set(found.job.layers), found.job.options.top
    heads = [Head(*place) for place in catalogue.to_df()[["layer", "head"]].itertuples(index=False)]
    heads = [head for head in heads if head.layer in layers]
    columns = ["head", "KV", *(label(kind) for kind in catalogue.scores)]
    rows = [
        [str(head), str(found.job.model.kv_group(head)), *(_score(catalogue, kind, head) for kind in catalogue.scores)]
        for head in heads[:top]
    ]
    show(columns, rows, right=columns[1:])
    if len(heads) > top:
        click.echo(f"and {len(heads) - top} more heads: --top {len(heads)}, or --json")


def _score(catalogue: HeadCatalogue, kind: str, head: Head) -> str:
    """A score; the retrieval score with its interval, where there is one."""
    value, low, high = (float(scores[kind][head]) for scores in (catalogue.scores, catalogue.low, catalogue.high))
    if kind != "retrieval" or isnan(low):
        return decimal(value)
    return f"{decimal(value)} [{decimal(low)}, {decimal(high)}]"


def _print_validation(checked: Validation) -> None:
    where = "while answering" if checked.phase == "decode" else "while reading and answering"
    for task, title in PRUNED.items():
        rows = [["none", "", _condition(checked, task, "none"), "", ""]]
        for fill in checked.fills:
            for k in checked.ks:
                rows.append([str(k), fill, *(_condition(checked, task, group, k, fill) for group in GROUPS)])
        if task != NEEDLES:
            click.echo()
        click.echo(title.format(where="everywhere" if task == PROSE else where))
        columns = ["heads", "fill", *GROUPS]
        show(columns, rows, right=[columns[0], *GROUPS])


def _condition(checked: Validation, task: str, group: str, k: int = 0, fill: str | None = None) -> str:
    """The value with its 95 % interval."""
    row = checked.row(task, group, k, fill)
    return f"{decimal(row['value'])} [{decimal(row['low'])}, {decimal(row['high'])}]"
