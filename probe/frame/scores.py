"""Scores of heads: the form in which every analysis hands its maps to tables, reports and the app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


LABELS = {
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
    "copying": "copying (OV)",
}


def label(kind: str) -> str:
    """Return the name of a kind of score as readers see it."""
    return LABELS.get(kind, kind)


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadScore:
    """One number for each head, [layers, heads], or [layers, kv_heads] where `per` is "kv head".

    unit: such as "share of the answer", "nats". sign: what a higher value means. layers: the model's own number of each
    row; empty for 0, 1, 2, ... NaN stands for a head without a score. low, high: bounds of a 95 % interval, if any.
    """

    values: Tensor
    unit: str
    sign: str
    layers: tuple[int, ...] = field(default=())
    per: str = "head"
    low: Tensor | None = None
    high: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"expected values [layers, heads], got {list(self.values.shape)}")
        if not self.layers:
            object.__setattr__(self, "layers", tuple(range(self.values.shape[0])))
        if len(self.layers) != self.values.shape[0]:
            raise ValueError(f"expected {self.values.shape[0]} layer numbers, got {len(self.layers)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON values, the map as nested lists."""
        bounds = {name: bound for name, bound in (("low", self.low), ("high", self.high)) if bound is not None}
        return {"unit": self.unit, "sign": self.sign, "per": self.per, "layers": list(self.layers)} | {
            name: values.tolist() for name, values in {"values": self.values, **bounds}.items()
        }
