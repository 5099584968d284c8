"""How is an attention head named? By its layer and its number there, both counted from zero: L18H6, or 18.6."""

from __future__ import annotations

import re
from typing import NamedTuple

from probe.errors import UsageError


class Head(NamedTuple):
    """A query head is named by layer and number, both from zero. It prints as L18H6 and sorts by layer, then number."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Return the head that "L18H6" or "18.6" names. Raises UsageError for another form."""
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)|(\d+)\.(\d+)", text.strip())
        if match is None:
            raise UsageError(f"{text!r} names no head: write layer and head as L18H6 or 18.6")
        layer, head = (int(group) for group in match.groups() if group is not None)
        return cls(layer, head)
