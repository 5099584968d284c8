"""`probe circuit`: the circuit of a task, how much of it another task reuses, and the repair that it suggests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from probe.analyses.circuits.tasks import NAMES
from probe.app.cli.old_options import Shared, shared


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Shared):
    """What was typed after `probe circuit TASK`, by option name; each is documented by its help text."""

    prompts: int
    top: int
    stages: int
    freeze_mlps: bool
    fill: str
    draws: int
    chosen: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReuseOptions(Shared):
    """What was typed after `probe circuit reuse`."""

    first: str
    second: str
    control: str
    prompts: int
    top: int
    freeze_mlps: bool


@dataclass(frozen=True, kw_only=True)
class EdgeOptions(Shared):
    """What was typed after `probe circuit edges`."""

    task: str
    prompts: int
    method: str
    steps: int
    draws: int
    exact: int
    chosen: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RepairOptions(Shared):
    """What was typed after `probe circuit repair`."""

    prompts: int
    draws: int
    chosen: dict[str, Any]


def _named(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs, whole numbers as such."""
    found: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if not mark or not name:
            raise click.BadParameter(f"expected NAME=VALUE, got {each!r}", context, parameter)
        found[name.replace("-", "_")] = int(value) if value.lstrip("-").isdigit() else value
    return found


PROMPTS = click.option(
    "--prompts", type=click.IntRange(min=2), default=40, show_default=True, help="Pairs of prompts of each task."
)
TOP = click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Heads that a stage keeps, at most."
)
FREEZE = click.option("--freeze-mlps", is_flag=True, help="Keep MLPs at their clean values, as other heads are.")
DRAWS = click.option(
    "--draws", type=click.IntRange(min=1), default=5, show_default=True, help="Draws of every random control."
)
SET = click.option(
    "--set", "chosen", multiple=True, metavar="NAME=VALUE", callback=_named,
    help="An option of the task, such as shots=2; repeat for several.",
)  # fmt: skip


def search_command(task: str) -> click.Command:
    """The command that searches the circuit of one task."""

    @click.command(task, short_help=f"Find the circuit of {task}.")
    @shared("model", "revision", "device", "dtype", "seed", "out")
    @PROMPTS
    @TOP
    @click.option(
        "--stages",
        type=click.IntRange(1, 4),
        default=4,
        show_default=True,
        help="How far to go back: the logits, the movers' queries, those heads' values, those heads' keys.",
    )
    @FREEZE
    @click.option(
        "--fill",
        type=click.Choice(["corrupted", "mean", "zero"]),
        default="corrupted",
        show_default=True,
        help="What a head writes that is knocked out: as in the corrupted prompt, its mean over them, or nothing.",
    )
    @DRAWS
    @SET
    @shared("dry-run", "json", "quiet")
    def command(**typed: Any) -> None:
        """Find the heads through which a task's answer comes, stage by stage from the logits backwards.

        Every head is patched along its path into what the stage before found. Then everything but the circuit is
        knocked out, beside random circuits of the same size. The run is saved; the same command again continues it, or
        shows it at once.
        """
        options = SearchOptions(**typed)
        from probe.app.cli import circuit_run

        circuit_run.search(task, options)

    return command


@click.command("reuse", short_help="How much of one task's circuit another uses.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@shared("model", "revision", "device", "dtype", "seed", "out")
@PROMPTS
@TOP
@FREEZE
@click.option("--control", default="subject-verb", show_default=True, metavar="TASK", help="A task that is unrelated.")
@shared("dry-run", "json", "quiet")
def reuse(**typed: Any) -> None:
    """Compare the circuits of two tasks, A and B, against what no reuse and full reuse look like.

    A is searched on other prompts too, which shows how much two circuits can share, and so is an unrelated task.
    """
    options = ReuseOptions(**typed)
    from probe.app.cli import circuit_run

    circuit_run.reuse(options)


@click.command("edges", short_help="Find the edges of a task's circuit: EAP-IG, exact effects, CPR and CMD.")
@click.argument("task", metavar="TASK|FILE")
@shared("model", "revision", "device", "dtype", "seed", "out")
@click.option(
    "--prompts",
    type=click.IntRange(min=4),
    default=40,
    show_default=True,
    help="Pairs of prompts; half of them give the scores, the other half the curve.",
)
@click.option(
    "--method",
    type=click.Choice(["eap-ig", "eap"]),
    default="eap-ig",
    show_default=True,
    help="Scores from gradients between corrupted and clean prompts, or from the clean prompt's alone.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Gradients that EAP-IG averages."
)
@click.option("--draws", type=click.IntRange(min=0), default=3, show_default=True, help="Random circuits of each size.")
@click.option(
    "--exact",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many of the best edges are patched by themselves, to check their scores.",
)
@SET
@shared("dry-run", "json", "quiet")
def edges(**typed: Any) -> None:
    """Score every edge of the model for a task, and see how much of the answer circuits of the best edges keep.

    The scores are estimates. The best are checked one at a time, and circuits from 0.1 % to all of the edges run on
    prompts that the scores have not seen, beside random ones of the same sizes: MIB's faithfulness, CPR and CMD.
    """
    options = EdgeOptions(**typed)
    from probe.app.cli import circuit_run

    circuit_run.edges(options)


@click.command("repair", short_help="Set IOI's mechanism to work on Colored Objects by hand.")
@shared("model", "revision", "device", "dtype", "seed", "out")
@click.option("--prompts", type=click.IntRange(min=2), default=160, show_default=True, help="Pairs of Colored Objects.")
@DRAWS
@SET
@shared("dry-run", "json", "quiet")
def repair(**typed: Any) -> None:
    """Force the heads that demote the wrong name on IOI onto the wrong colours of Colored Objects.

    An oracle: the right answer says which colours are wrong. It tests a mechanism and is no gain. The heads come from
    IOI's effects alone; beside them stand random heads, random tokens and the right colour.
    """
    options = RepairOptions(**typed)
    from probe.app.cli import circuit_run

    circuit_run.repair(options)


class Tasks(click.Group):
    """A group with a command for every built-in task, and for every JSON Lines file that is there."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*NAMES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        return search_command(cmd_name) if cmd_name in NAMES or Path(cmd_name).is_file() else None


@click.group("circuit", cls=Tasks, subcommand_metavar="TASK|FILE|edges|reuse|repair ...")
def command() -> None:
    """Find the circuit of a task as heads or as edges, compare two, or repair one with the mechanism of another.

    TASK is a built-in task, FILE a JSON Lines file with "clean", "corrupted", "good" and "bad" on every line, and
    "roles" to say where the answers stand.
    """


command.add_command(edges)
command.add_command(reuse)
command.add_command(repair)
