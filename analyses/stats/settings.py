"""Settings of `probe stats`: the texts, the statistics, and the units over which these are averaged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from probe.errors import UsageError
from probe.frame.settings import Settings as Base
from probe.frame.settings import given, setting

STATISTICS = ("entropy", "distance", "windowed-distance", "top", "mass", "lse")
UNITS = ("token", "word", "sentence", "turn", "thinking")
FORMATS = ("parquet", "csv")
FIRST = "first"
"""Name of the key set that holds the first token; the statistic `mass` always measures it."""
MOST_SETS = 32  # key sets that the engine measures at once


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """How does each head attend on your own texts?

    The command reads your texts or chat transcripts, measures attention statistics at every token, and averages them
    over tokens, words, sentences, chat turns, or thinking and answer. It prints the heads with the highest means over
    the texts, draws a map of layers and heads for each statistic, and writes a table to the run folder with one row
    for each layer, head, text, unit and statistic.
    """

    presets: ClassVar = {
        "quick": {"max_tokens": 256, "max_texts": 8},
        "report": {"stat": ("entropy", "distance", "top", "mass"), "max_tokens": 1024, "max_texts": 100},
    }

    files: tuple[Path, ...] = setting(
        (), 'Texts to read: a .jsonl file (each line has "text", or "messages" of a chat), a .txt, .md or .rst file '
        "(one text), or a folder of these files", spelling="--texts",
    )  # fmt: skip
    prompt: tuple[str, ...] = setting((), "A text to read, given here", metavar="TEXT")
    prompt_file: tuple[Path, ...] = setting((), "A file whose whole content is one text, whatever its suffix")
    texts: Any = given('Texts: each a string, or a list of messages with "role" and "content"')
    stat: tuple[str, ...] = setting(
        ("entropy",), "Statistic to measure: entropy (nats), distance (tokens from query to key), windowed-distance "
        "(the same, cut off at --window), top (largest weight of a row), mass (share on the first token, and on "
        "--positions), lse (log-sum-exp of the scores, nats)", choices=STATISTICS,
    )  # fmt: skip
    unit: str = setting("token", "Units of text over which the statistics are averaged", choices=UNITS)
    window: int = setting(10, "Tokens at which windowed-distance cuts each distance off", least=1)
    positions: dict[str, Any] = setting(
        {}, "Named key positions for --stat mass, such as early=1-3,8; the first token is position 0",
        metavar="NAME=N-N,N", shown="none",
    )  # fmt: skip
    max_tokens: int | None = setting(
        None, "Tokens after which a text is cut", least=2, shown="none; a text beyond the context is refused"
    )
    max_texts: int | None = setting(None, "Different texts that are read, the first ones", least=1, shown="all")
    format: str = setting("parquet", "Format of the table in the run folder", choices=FORMATS, adds=True)

    def check(self) -> None:
        """Refuse key positions that cannot be read or that no statistic uses, and a string in place of a list."""
        sets = self.key_sets()
        if len(sets) > MOST_SETS:
            raise UsageError(f"--positions: expected at most {MOST_SETS - 1} names, got {len(self.positions)}")
        if self.positions and "mass" not in self.stat:
            raise UsageError("--positions names keys for --stat mass; add --stat mass or leave --positions out")
        if not self.stat:
            raise UsageError("--stat: expected at least one statistic, got none")
        if isinstance(self.texts, str):
            raise UsageError("texts: expected a list of texts, got one string; put it in a list")

    def key_sets(self) -> dict[str, tuple[int, ...]]:
        """Return the key positions of each set: the first token, then the named ones."""
        if FIRST in self.positions:
            raise UsageError(f"--positions: {FIRST!r} is the first token's name; choose another")
        return {FIRST: (0,)} | {name: _positions(name, value) for name, value in self.positions.items()}


def _positions(name: str, value: Any) -> tuple[int, ...]:
    """Return the positions that a text such as 1-3,8 names."""
    found: set[int] = set()
    for part in str(value).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(f"--positions: expected {name}=N-N,N, such as {name}=1-3,8, got {name}={value}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))
