"""The work behind `probe intervene act`: the analysis in a run folder, its table and its verdicts."""

from __future__ import annotations

import click

import probe
from probe.analyses.act import classification
from probe.analyses.act import result as act
from probe.app.cli.intervene import Options
from probe.app.cli.progress import bar, continuing, note
from probe.app.cli.tables import show
from probe.figures.pictures import save_pictures
from probe.saving.jsonable import dumps, plain
from probe.saving.old_runs import RunFolder, default_folder


def main(options: Options) -> None:
    """Carry the command out and print what was found."""
    model = probe.load(options.model, revision=options.revision, device=options.device, dtype=options.dtype)
    plan = act.options(
        model,
        examples=None if options.task is None else classification.read(options.task),
        preset=options.preset,
        k=options.k,
        layers=options.layers,
        draws=options.draws,
        sweep=options.sweep,
        seed=options.seed,
        beta=options.beta,
    )
    config = act.run_config(model, plan)
    folder = options.out or default_folder("act", options.model, config)
    sizes = {split: sum(each.split == split for each in plan.examples) for split in {e.split for e in plan.examples}}
    splits = ", ".join(f"{count} {split}" for split, count in sorted(sizes.items()))
    click.echo(
        f"{model}\n{splits} prompts; {plan.k} of {len(plan.layers) * model.n_heads} heads, {plan.draws} random draws, "
        f"{plan.sweep} heads run alone; folder {folder}",
        err=options.as_json,
    )
    if options.dry_run:
        passes = sum(sizes.values()) * (4 + plan.draws) + sizes["calibration"] * (plan.sweep + 3)
        if options.as_json:
            click.echo(dumps(plain({"prompts": passes, "folder": str(folder), "splits": sizes})))
        else:
            click.echo(f"about {passes:,} prompts to read")
        return
    with (
        continuing(folder),
        RunFolder(folder, config) as run_folder,
        bar("runs", quiet=options.quiet) as progress,
    ):
        found = act.carry_out_plan(model, plan, out=run_folder, progress=progress)
    pictures = save_pictures(found.figures(), folder / "figures")
    if options.as_json:
        click.echo(dumps(found.to_dict() | plain({"agreement": found.agreement(), "folder": str(folder)})))
        return
    print_found(found)
    note(f"saved in {folder}, {len(pictures)} pictures", quiet=options.quiet)


def print_found(found: act.Calibration) -> None:
    """The conditions of each split, best first, then what to make of them."""
    for split, rows in found.to_df().groupby("split", sort=False):
        show(
            ("condition", "accuracy", "loss", "AUC"),
            [
                (row["condition"], f"{row['accuracy']:.3f}", f"{row['nll']:.3f}", f"{row['auc']:.3f}")
                for _, row in rows.iterrows()
            ],
            right=("accuracy", "loss", "AUC"),
            title=str(split),
        )
        click.echo()
    for split in found.conditions["split"].unique():
        if split != "calibration":
            click.echo(found.verdict(split))
    agreement = found.agreement()
    if agreement["heads"] > 2:
        click.echo(
            f"gradient filter against {agreement['heads']} heads run alone: Spearman {agreement['spearman']:.3f}, "
            f"Pearson {agreement['pearson']:.3f}"
        )
    click.echo("calibrated: " + " ".join(map(str, sorted(found.chosen))))
