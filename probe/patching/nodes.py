"""What can be patched: heads, MLPs, and the places of the stream and of attention that feed and leave them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from probe.errors import UsageError
from probe.heads import Head

if TYPE_CHECKING:
    from probe.models import Model


class MLP(NamedTuple):
    """The MLP of a layer, as a sender: what it writes to the stream."""

    layer: int

    def __str__(self) -> str:
        return f"MLP{self.layer}"


class Input(NamedTuple):
    """An input of attention, as a receiver or a place to patch: "q" of a query head, "k" or "v" of a KV head."""

    kind: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}{self.kind.upper()}{self.head}"


@dataclass(frozen=True)
class Stream:
    """The residual stream that enters a layer."""

    layer: int

    def __str__(self) -> str:
        return f"stream{self.layer}"


OPERANDS = {"q": "query", "k": "key", "v": "value"}
"""Kinds of inputs, and what an attention call names them."""

Sender = Head | MLP
Place = Head | MLP | Input | Stream


def queries(heads: Iterable[Head]) -> tuple[Input, ...]:
    """The queries of heads."""
    return tuple(Input("q", *head) for head in heads)


def keys(model: Model, heads: Iterable[Head]) -> tuple[Input, ...]:
    """The keys that heads read, each KV head once."""
    return tuple(dict.fromkeys(Input("k", head.layer, model.kv_group(head)) for head in heads))


def values(model: Model, heads: Iterable[Head]) -> tuple[Input, ...]:
    """The values that heads read, each KV head once."""
    return tuple(dict.fromkeys(Input("v", head.layer, model.kv_group(head)) for head in heads))


def checked_senders(model: Model, senders: Iterable[Sender | tuple[int, int]] | None) -> tuple[Sender, ...]:
    """The senders, all heads where None is given. Raises UsageError for one that the model does not have."""
    if senders is None:
        return tuple(model.heads())
    found = tuple(sender if isinstance(sender, MLP) else Head(*sender) for sender in senders)
    if not found:
        raise UsageError("expected at least one sender, got none")
    for sender in found:
        size = 1 if isinstance(sender, MLP) else model.n_heads
        head = 0 if isinstance(sender, MLP) else sender.head
        if not (0 <= sender.layer < model.n_layers and 0 <= head < size):
            raise UsageError(_missing(model, sender))
    return found


def checked_inputs(model: Model, inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs. Raises UsageError for one that the model does not have."""
    if not inputs:
        raise UsageError("expected at least one receiver, got none")
    for each in inputs:
        if each.kind not in ("q", "k", "v"):
            raise UsageError(f"expected an input q, k or v, got {each.kind!r}")
        heads = model.n_heads if each.kind == "q" else model.n_kv_heads
        if not (0 <= each.layer < model.n_layers and 0 <= each.head < heads):
            raise UsageError(_missing(model, each))
    return tuple(dict.fromkeys(Input(*each) for each in inputs))


def checked_places(model: Model, places: Sequence[Place]) -> tuple[Place, ...]:
    """The places, as they come. Raises UsageError for one that the model does not have."""
    if not places:
        raise UsageError("expected at least one place to patch, got none")
    for place in places:
        if isinstance(place, Input):
            checked_inputs(model, [place])
        elif isinstance(place, Head | MLP):
            checked_senders(model, [place])
        elif not 0 <= place.layer < model.n_layers:
            raise UsageError(_missing(model, place))
    return tuple(places)


def _missing(model: Model, node: object) -> str:
    return (
        f"{node} does not exist: {model.name} has layers 0..{model.n_layers - 1}, heads 0..{model.n_heads - 1} "
        f"and KV heads 0..{model.n_kv_heads - 1}"
    )
