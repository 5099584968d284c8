"""The frame of every analysis command: its options are made from the Settings, and the rest is the same for all.

Nothing here imports torch, so that --help is instant; what a command does is in `probe.app.cli.work`.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from probe.analyses import GROUPS, TABLE, settings_of
from probe.app.cli.options import Frame, Numbers, shared
from probe.frame.settings import Option, Settings, spelled

MODEL = ("model", "revision", "device", "dtype")
OUTPUT = ("top", "layers", "out", "dry-run", "json", "quiet")


def analysis_command(name: str) -> click.Command:
    """Return the command of an analysis in the table."""
    settings = settings_of(name)
    own = [parameter(field, field.metadata["option"]) for field in fields(settings) if "option" in field.metadata]
    arguments = [each for each in own if isinstance(each, click.Argument)]
    options = [each for each in own if not isinstance(each, click.Argument)]
    text = inspect.getdoc(settings) or ""
    return click.Command(
        name.rsplit(" ", 1)[-1],
        params=[*arguments, *shared(*MODEL), _preset(settings), *options, *shared(*OUTPUT)],
        callback=partial(_call, name),
        help=text,
        short_help=text.splitlines()[0],
    )


class AnalysisGroup(click.Group):
    """The commands of the analyses whose name begins with one word, such as `circuit edges`.

    Where the word alone is an analysis too (`circuit TASK`), what is no subcommand is its argument.
    """

    def __init__(self, word: str) -> None:
        self.word = word
        names = ", ".join(self._names())
        text, metavar = f"{GROUPS.get(word, 'Commands')}: {names}.", None
        if word in TABLE:
            own = analysis_command(word)
            place = own.params[0].make_metavar(click.Context(own))
            metavar = f"{place} | {' | '.join(self._names())}"
            text = (
                f"{own.help}\n\nSubcommands: {names}. Anything else is {place}, the first argument of `probe {word}`; "
                f"`probe {word} {place} --help` lists its options."
            )
        super().__init__(
            word, help=text, short_help=text.splitlines()[0], subcommand_metavar=metavar, no_args_is_help=True
        )

    def _names(self) -> list[str]:
        return [name.removeprefix(f"{self.word} ") for name in TABLE if name.startswith(f"{self.word} ")]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return analysis_command(f"{self.word} {cmd_name}") if cmd_name in self._names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.word in TABLE and args[0] not in self._names():
            own = analysis_command(self.word)
            own.params[0].metavar = ""  # in its usage line the argument's value already stands there as a name
            return args[0], own, args
        return super().resolve_command(ctx, args)


def command_of(word: str) -> click.Command | None:
    """Return the command or group that a word names, None where no analysis has it."""
    if any(name.startswith(f"{word} ") for name in TABLE):
        return AnalysisGroup(word)
    return analysis_command(word) if word in TABLE else None


def parameter(field: Any, option: Option) -> click.Parameter:
    """Return the click parameter of a settings field."""
    kind = str(field.type)
    required = field.default is MISSING and field.default_factory is MISSING
    if option.argument:
        return click.Argument([field.name], required=required, metavar=option.metavar)
    many = kind.startswith("tuple[") and not (kind.startswith(("tuple[int", "tuple[float")))
    flag = kind == "bool"
    spelling = spelled(field.name, option)
    return click.Option(
        [spelling, field.name],
        help=_help(field, option, flag=flag, many=many),
        type=None if flag else _type(kind, option),
        metavar=option.metavar,
        is_flag=flag,
        default=None,
        multiple=many or kind.startswith("dict"),
        callback=_pairs if kind.startswith("dict") else None,
    )


def _type(kind: str, option: Option) -> click.ParamType | None:
    if kind.startswith("dict"):
        return click.STRING
    if option.choices:
        return click.Choice(list(option.choices))
    if kind.startswith(("tuple[int", "tuple[float")):
        return Numbers(int if kind.startswith("tuple[int") else float)
    if "Path" in kind:
        return click.Path(exists=True, path_type=Path)
    return click.INT if kind.startswith("int") else click.FLOAT if kind.startswith("float") else click.STRING


def _help(field: Any, option: Option, *, flag: bool, many: bool) -> str:
    """Say what the option does and what its default is."""
    text = option.help.rstrip(".")
    if many:
        text += "; repeat for several"
    default = option.shown
    if default is None and field.default is not MISSING and not flag:
        default = _said(field.default)
    return f"{text} (default: {default})" if default else text


def _said(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE pairs, whole numbers as such."""
    found: dict[str, Any] = {}
    for each in given or ():
        name, mark, value = each.partition("=")
        if not mark or not name:
            raise click.BadParameter(f"expected NAME=VALUE, got {each!r}", context, parameter)
        found[name.replace("-", "_")] = int(value) if value.lstrip("-").isdigit() else value
    return found


def _preset(settings: type[Settings]) -> click.Option:
    names = ["default", *settings.presets]
    return click.Option(
        ["--preset"], type=click.Choice(names), default="default",
        help="Named values of the options below; options that are typed come on top (default: default)",
    )  # fmt: skip


def _call(name: str, **typed: Any) -> None:
    """Carry out a command: everything heavy is imported here."""
    started = time.monotonic()
    kind = settings_of(name)
    own = kind.options()
    given = {key: value for key, value in typed.items() if key in own and value not in (None, (), {})}
    settings = kind.of(typed["preset"], **given)
    frame = Frame(
        started=started, **{each.name: typed[each.name] for each in fields(Frame) if each.name != "started"}
    )  # fmt: skip
    from probe.app.cli.work import work

    work(name, settings, frame)
