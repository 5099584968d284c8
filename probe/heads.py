"""Naming attention heads."""

from __future__ import annotations

import re
from typing import NamedTuple

from probe.errors import UsageError


class Head(NamedTuple):
    """A query head, zero-based; prints as L18H6 and sorts by layer, then head."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Head from "L18H6" or "18.6"."""
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)|(\d+)\.(\d+)", text.strip())
        if match is None:
            raise UsageError(f"expected a head such as L18H6 or 18.6, got {text!r}")
        layer, head = (int(group) for group in match.groups() if group is not None)
        return cls(layer, head)
