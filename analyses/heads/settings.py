"""Settings of `probe heads`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from probe.errors import UsageError
from probe.frame.settings import Settings as Base
from probe.frame.settings import given, setting, spelled

if TYPE_CHECKING:
    from torch import Tensor

    from probe.analyses.heads.needles import Needle
    from probe.analyses.texts.haystacks import Haystack
    from probe.heads import Head

KINDS = ("retrieval", "induction", "previous-token", "duplicate-token", "copying", "sink")


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """Which heads retrieve, induce, copy and sink, and does the model fail without its retrieval heads?

    A sentence with an answer (a needle) is hidden in prose, and the model is asked for the answer. A head that has its
    largest weight on an answer token while the model says this token copies it; the share of the answer that a head
    copies is its retrieval score. Induction, previous-token, duplicate-token, copying and sink scores of the same heads
    say what else they do. The command prints a table of heads, the claims that the run tests, and where the figures
    are. With --validate it also prunes the best heads, and random heads as a control, and measures what breaks.
    """

    presets: ClassVar = {
        "quick": {"lengths": (300,), "depths": (50.0,), "held_out": 6},
        "report": {"validate": True, "fills": ("zero", "uniform")},
    }

    kinds: tuple[str, ...] = setting(
        ("all",), "Score to measure; all means all six", choices=(*KINDS, "all"), spelling="--kind"
    )
    lengths: tuple[int, ...] = setting(
        (300, 600, 1000, 1500), "Lengths of the context, in tokens of prose and needle together", least=1
    )
    depths: tuple[float, ...] = setting(
        (10.0, 50.0, 90.0), "Percent of the prose that stands before the needle", least=0, most=100
    )
    samples: int = setting(
        1, "Needles of each family for each length and depth; each of them stands in other prose", least=1
    )
    families: tuple[str, ...] = setting(
        ("numbers", "activities"), "Family of built-in needles", choices=("numbers", "activities"), spelling="--family"
    )
    needles: Path | None = setting(
        None, 'JSONL file of needles, each line with "needle", "question" and "answer"', shown="the built-in families"
    )
    haystacks: tuple[Path, ...] = setting(
        (), "Text file to hide needles in and to read sink scores from", spelling="--haystack",
        shown="the language reference of your Python",
    )  # fmt: skip
    prompt_style: str = setting(
        "chat", "Form of the prompt: the model's chat template (chat), or the plain text of the paper (plain)",
        choices=("chat", "plain"),
    )  # fmt: skip
    score: str = setting(
        "set", "Definition of the retrieval score: the share of distinct answer tokens that a head copied (set), or "
        "its copying steps over answer tokens, as in the released code (per_step)", choices=("set", "per_step"),
    )  # fmt: skip
    until_stable: bool = setting(
        False, "Stop asking once 19 of the 20 best heads have stayed the same over six retrieved needles"
    )
    max_new_tokens: int = setting(24, "Longest answer to a needle question, in tokens", least=1)
    max_tokens: int | None = setting(None, "Longest of --lengths that is asked, in tokens", least=1)
    validate: bool = setting(
        False, "Prune the best heads, and random heads as a control, and measure whether the model still answers",
        adds=True,
    )  # fmt: skip
    held_out: int = setting(
        20, "Held-out needles, and closed-book questions, that --validate asks; there are 20 of each", least=2, most=20,
        adds=True,
    )  # fmt: skip
    fills: tuple[str, ...] = setting(
        ("zero",), "Output of a head that --validate prunes: zero, or that of even attention to all that it "
        "sees (uniform, the official mask)", choices=("zero", "uniform"), spelling="--fill", adds=True,
    )  # fmt: skip
    phase: str = setting(
        "decode", "Steps at which --validate prunes: only those that write the answer (decode), or the reading of "
        "the prompt too (all)", choices=("decode", "all"), adds=True,
    )  # fmt: skip
    compare: Path | None = setting(
        None, "Run folder of another `probe heads`, whose scores are compared with this run's", metavar="FOLDER",
        adds=True,
    )  # fmt: skip
    own_needles: tuple[Needle, ...] | None = given("Needles to ask instead of the built-in families")
    haystack: Haystack | None = given("Prose to hide needles in, instead of text files")
    ranked: Tensor | Sequence[Head] | None = given(
        "Heads to validate instead of the retrieval heads: a score map [layers, heads], or heads, best first"
    )

    @property
    def retrieves(self) -> bool:
        """Return whether needle questions are asked."""
        return bool({"all", "retrieval"} & set(self.kinds))

    @property
    def other_kinds(self) -> tuple[str, ...]:
        """Return the scores asked for beside retrieval, by their names in the result."""
        wanted = KINDS if "all" in self.kinds else self.kinds
        return tuple(kind.replace("-", "_") for kind in KINDS[1:] if kind in wanted)

    @property
    def asked_lengths(self) -> tuple[int, ...]:
        """Return the lengths that --max-tokens leaves."""
        return tuple(length for length in self.lengths if self.max_tokens is None or length <= self.max_tokens)

    def check(self) -> None:
        options = self.options()
        for name in ("kinds", "lengths", "depths", "families", "fills"):
            if not getattr(self, name):
                raise UsageError(f"{spelled(name, options[name])}: expected at least one value, got none")
        if not self.retrieves:
            self._check_without_retrieval()
        if not self.asked_lengths:
            given_lengths = ",".join(map(str, self.lengths))
            raise UsageError(f"--max-tokens {self.max_tokens} leaves none of --lengths {given_lengths}")
        if self.needles is not None and self.own_needles is not None:
            raise UsageError("--needles: expected a file or own_needles, got both")
        if self.haystacks and self.haystack is not None:
            raise UsageError("--haystack: expected files or a haystack, got both")

    def _check_without_retrieval(self) -> None:
        got = f"got --kind {' --kind '.join(self.kinds)}"
        quick = self.presets["quick"]
        for name in ("lengths", "depths", "needles", "until_stable", "max_tokens"):
            value = getattr(self, name)
            if value not in (type(self).__dataclass_fields__[name].default, quick.get(name)):
                raise UsageError(f"--{name.replace('_', '-')} needs --kind retrieval, {got}")
        if self.validate and self.ranked is None:
            raise UsageError(f"--validate prunes the retrieval heads and needs --kind retrieval, {got}")
