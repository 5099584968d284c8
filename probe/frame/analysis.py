"""An analysis consists of units of work, which the model's facts and the records so far decide, and of their result.

    prepare(model)          make the prompts and refuse what cannot be asked, before anything runs
    plan(facts, records)    the units that are known now; called again until it names none that has no record
    measure(model, unit)    one unit's record
    reduce(records, ...)    the result

A unit is a name and JSON arguments, and its record depends on the model, the settings and the unit alone: one process,
a killed and resumed one, and several workers give the same numbers. An instance serves one run; what several units
need (prompts, a key-value cache of their common prose) it may keep, as long as no number depends on it.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from probe.errors import UsageError
from probe.frame.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from probe.frame.findings import Claim
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.saving.manifest import Manifest
    from probe.saving.results import Result
    from probe.tokens import Tokens

S = TypeVar("S", bound=Settings)
R = TypeVar("R", bound="Result")


class Need(Enum):
    """The kind of model that an analysis runs; the value says it in words."""

    TEXT = "a causal language model"
    VISION = "a vision-language model"
    ENCODER = "an encoder"
    NOTHING = "no model"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts that a plan may use: the model's name, layers, heads, KV heads, head size, positions and parameters.

    All but the name are 0 for an analysis that runs no model.
    """

    name: str = "no model"
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    context: int = 0
    parameters: int = 0

    @classmethod
    def of(cls, model: Model | None) -> Facts:
        """Return the facts of a loaded model."""
        if model is None:
            return cls()
        return cls(
            name=model.name, n_layers=model.n_layers, n_heads=model.n_heads, n_kv_heads=model.n_kv_heads,
            head_dim=model.head_dim, context=model.context,
            parameters=sum(parameter.numel() for parameter in model.hf.parameters()),
        )  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A piece of work: a name that no other unit of the run has, and arguments that JSON can hold."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A prompt that a unit read: its hash, its ids, its text where it was made from one, and the tokens decoded after
    it by the unchanged model."""

    hash: str
    ids: tuple[int, ...]
    text: str | None = None
    written: int = 0

    @classmethod
    def of(cls, prompt: Tokens | Tensor, *, written: int = 0) -> Prompt:
        """Return the prompt of Tokens or of a row of ids [tokens]."""
        from probe.tokens import Tokens, ids_hash

        if isinstance(prompt, Tokens):
            return cls(prompt.hash, tuple(prompt.ids.tolist()), prompt.text, written)
        return cls(ids_hash(prompt), tuple(prompt.tolist()), None, written)


@dataclass(frozen=True)
class Measured:
    """The record of a unit, JSON values and tensors, and the prompts that the unit read."""

    data: Any
    prompts: Sequence[Prompt] = ()


@dataclass(frozen=True)
class Cost:
    """An estimate of a run: seconds, peak bytes of the process, and seconds of plain prefill and decode of its tokens.

    parts: what the seconds are spent on, in words. passes: seconds of the run over plain seconds.
    """

    seconds: float
    memory: int
    plain: float
    parts: tuple[tuple[str, float], ...] = ()

    @property
    def passes(self) -> float | None:
        """Return the seconds over those of plainly reading the same tokens; None without a model."""
        return self.seconds / self.plain if self.plain else None


Records = Mapping[str, Any]
"""Unit name -> record data, in the order in which they were measured."""


class Analysis(ABC, Generic[S, R]):
    """Base of every analysis; `name` is the words of its command, `claims` what a run can refute."""

    name: ClassVar[str]
    claims: ClassVar[tuple[Claim, ...]] = ()

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self._ready = False
        self._folder: Path | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def need(self) -> Need:
        """Return the kind of model that these settings need."""
        return Need.TEXT

    def prepare(self, model: Model) -> None:
        """Make what all units need; raise UsageError for everything that can be refused before the first unit."""

    def ready(self, model: Model | None) -> None:
        """Check the kind of model and prepare, once. Raises UsageError, "not applicable: ...", for the wrong kind."""
        need = self.need()
        if need is not Need.NOTHING and (need is not Need.TEXT or model is None):
            found = "none" if model is None else f"{model.name}, {Need.TEXT.value}"
            raise UsageError(f"not applicable: {self.name} needs {need.value}, got {found}")
        if model is not None and not self._ready:
            self.prepare(model)
        self._ready = True

    def inputs(self) -> dict[str, Any]:
        """Return, as JSON, what decides the numbers beside model and settings: hashes of prompts and of files."""
        return {}

    def describe(self) -> str:
        """Return one line that says what will be measured, such as "40 pairs of ioi, 4 stages"."""
        return ""

    def expected(self, facts: Facts) -> int:
        """Return how many units the whole run has, as far as it is known; progress and --dry-run show it."""
        return len(self.plan(facts, {}))

    def estimate(self, model: Model, speed: Speed) -> Cost | None:
        """Return what the run will take at this speed; None where that is not known."""
        return None

    @abstractmethod
    def plan(self, facts: Facts, records: Records) -> Sequence[Unit]:
        """Return the units that are known now, in order; those that have a record may be among them."""

    @abstractmethod
    def measure(self, model: Model, unit: Unit) -> Measured:
        """Return the record of one unit."""

    @abstractmethod
    def reduce(self, model: Model, records: Records, manifest: Manifest) -> R:
        """Return the result of all records."""

    def is_current(self, result: R) -> bool:
        """Return whether a saved result of these settings holds; not if it shows another run, which has changed."""
        return True

    def workspace(self, unit: Unit) -> Path:
        """Return a folder for the checkpoints of a long unit: in the run folder, or one that goes with the run."""
        if self._folder is None:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="probe-")
        root = Path(self._scratch.name) if self._folder is None else self._folder / "work"  # type: ignore[union-attr]
        folder = root / unit.name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def tidy(self) -> None:
        """Delete the workspaces that lie in no run folder."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
