"""Settings of an analysis: frozen dataclasses whose fields carry the help of the command's options.

This module and every `settings.py` of an analysis import the standard library and light modules of this one alone, so
that a command's --help is instant. A field is declared once:

    lengths: tuple[int, ...] = setting((300, 600), "Tokens of prose and needle", least=1)

The docstring of the class is the help of the command; its first line is the question that the analysis answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from probe.errors import UsageError
from probe.saving.jsonable import plain

if TYPE_CHECKING:
    from typing_extensions import Self

MISSING = dataclasses.MISSING
NUMBERS = {"int": int, "float": float}


@dataclass(frozen=True, kw_only=True)
class Option:
    """The data of one field that the command line and the checks use.

    help: what it does, in which unit; the default is appended. choices: the values that are allowed. least, above and
    most: bounds of numbers. spelling: the option's name where it is not the field's. argument: given by its place,
    without a name. adds: the setting only adds units or reads another run, so that a run folder may be entered again
    with another value. shown: the default in words, where the value does not say it.
    """

    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    spelling: str | None = None
    argument: bool = False
    adds: bool = False
    metavar: str | None = None
    shown: str | None = None


def setting(default: Any = MISSING, help: str = "", **options: Any) -> Any:
    """Declare a field that is an option of the command; `options` are those of `Option`."""
    metadata = {"option": Option(help=help, **options)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def given(help: str) -> Any:
    """Declare a field for an object that only Python can give, such as a task; its default is None."""
    return dataclasses.field(default=None, metadata={"given": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of every analysis.

    presets: name -> values that replace the defaults; "quick" is a first look, "report" what a report runs.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    seed: int = setting(0, "Seed of every random draw; the same seed gives the same numbers")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | range):  # as good as a tuple where a caller writes it
                object.__setattr__(self, field.name, tuple(value))
            option = field.metadata.get("option")
            if option is not None:
                _check(field, option, getattr(self, field.name))
        self.check()

    def check(self) -> None:
        """Raise UsageError for settings that contradict one another; subclasses override this."""

    @classmethod
    def of(cls, preset: str | None = None, **changes: Any) -> Self:
        """Return the settings of a preset with these changes."""
        if preset is not None and preset != "default" and preset not in cls.presets:
            known = ", ".join(["default", *cls.presets])
            raise UsageError(f"--preset: expected one of {known}, got {preset!r}")
        cls._check_names(changes)
        return cls(**{**cls.presets.get(preset or "default", {}), **changes})

    def changed(self, **changes: Any) -> Self:
        """Return these settings with some changes."""
        self._check_names(changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def _check_names(cls, changes: Mapping[str, Any]) -> None:
        names = {field.name for field in dataclasses.fields(cls)}
        wrong = [name for name in changes if name not in names]
        if wrong:
            raise UsageError(f"unknown setting {wrong[0]!r}: expected one of {', '.join(sorted(names))}")

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Return the option of every field that has one, by field name."""
        found = {field.name: field.metadata.get("option") for field in dataclasses.fields(cls)}
        return {name: option for name, option in found.items() if option is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return every option's value as JSON: paths as text, tuples as lists."""
        return {name: plain(getattr(self, name)) for name in self.options()}

    def identity(self) -> dict[str, Any]:
        """Return what a run folder must have been made with to be continued.

        Fields that only add units are left out, and so are paths: `Analysis.inputs` gives the hash of what they hold.
        """
        kept = {field.name for field in dataclasses.fields(self) if "Path" not in str(field.type)}
        return {name: value for name, value in self.to_dict().items() if name in kept and not self.options()[name].adds}


def spelled(name: str, option: Option) -> str:
    """Return the option as it is typed: --max-tokens for the field max_tokens."""
    return option.spelling or f"--{name.replace('_', '-')}"


def _check(field: dataclasses.Field[Any], option: Option, value: Any) -> None:
    if value is None:
        return
    name = option.metavar if option.argument and option.metavar else spelled(field.name, option)
    kind = str(field.type)
    several = kind.startswith("tuple")
    if several != isinstance(value, tuple):
        raise UsageError(f"{name}: expected {'a list of values' if several else 'one value'}, got {value!r}")
    element = kind.removeprefix("tuple[")
    wanted = next((number for word, number in NUMBERS.items() if element.startswith(word)), None)
    for each in value if several else [value]:
        if option.choices and each not in option.choices and not option.argument:
            raise UsageError(f"{name}: expected one of {', '.join(option.choices)}, got {each!r}")
        if wanted is None:
            continue
        if isinstance(each, bool) or not isinstance(each, int | float) or (wanted is int and not isinstance(each, int)):
            raise UsageError(f"{name}: expected {'a whole number' if wanted is int else 'a number'}, got {each!r}")
        if not _inside(option, each):
            raise UsageError(f"{name}: expected {_bounds(option)}, got {each}")


def _inside(option: Option, value: float) -> bool:
    low = option.least is None or value >= option.least
    return low and (option.above is None or value > option.above) and (option.most is None or value <= option.most)


def _bounds(option: Option) -> str:
    """Say the bounds in words."""
    if option.above is not None:
        return f"a number above {option.above:g}" + (f" and at most {option.most:g}" if option.most is not None else "")
    if option.least is not None and option.most is not None:
        return f"{option.least:g} to {option.most:g}"
    return f"at least {option.least:g}" if option.least is not None else f"at most {option.most:g}"
