"""Which parts of a model can be patched? Heads, MLPs, the inputs of attention, and the stream that enters a layer.

A head (`probe.heads.Head`) and an MLP are senders: they write to the residual stream. An input of attention is a
receiver: a query of a head, or a key or value of a KV head, which all query heads of its group read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from probe.errors import UsageError
from probe.heads import Head

if TYPE_CHECKING:
    from probe.models import Model


class MLP(NamedTuple):
    """The MLP of a layer, as the sender of what it writes to the stream. It prints as MLP3."""

    layer: int

    def __str__(self) -> str:
        return f"MLP{self.layer}"


class Input(NamedTuple):
    """An input of attention, a receiver or a place to patch: "q" of a query head, "k" or "v" of a KV head (L2Q1)."""

    kind: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}{self.kind.upper()}{self.head}"


@dataclass(frozen=True)
class Stream:
    """The residual stream that enters a layer, as a place to patch."""

    layer: int

    def __str__(self) -> str:
        return f"stream{self.layer}"


OPERANDS = {"q": "query", "k": "key", "v": "value"}
"""The kinds of inputs, and their names in an attention call."""

Sender = Head | MLP
Place = Head | MLP | Input | Stream
N = TypeVar("N", bound=Place)


def queries(heads: Iterable[Head]) -> tuple[Input, ...]:
    """Return the queries of heads."""
    return tuple(Input("q", *head) for head in heads)


def keys(model: Model, heads: Iterable[Head]) -> tuple[Input, ...]:
    """Return the keys that heads read, each KV head once."""
    return tuple(dict.fromkeys(Input("k", head.layer, model.kv_group(head)) for head in heads))


def values(model: Model, heads: Iterable[Head]) -> tuple[Input, ...]:
    """Return the values that heads read, each KV head once."""
    return tuple(dict.fromkeys(Input("v", head.layer, model.kv_group(head)) for head in heads))


def checked_senders(model: Model, senders: Iterable[Sender | tuple[int, int]] | None) -> tuple[Sender, ...]:
    """Return the senders, all heads where None is given. Raises UsageError for one that the model does not have."""
    if senders is None:
        return tuple(model.heads())
    named = [sender if isinstance(sender, MLP) else Head(*sender) for sender in senders]
    return checked(model, named, "sender was given: name at least one head or MLP")


def checked(model: Model, nodes: Sequence[N], what: str) -> tuple[N, ...]:
    """Return the nodes as they come. Raises UsageError for none (`what`), and for one that the model does not have."""
    if not nodes:
        raise UsageError(f"no {what}")
    for node in nodes:
        if isinstance(node, Input) and node.kind not in OPERANDS:
            raise UsageError(f"the kind of an input must be 'q', 'k' or 'v', got {node.kind!r}")
        heads = model.n_kv_heads if isinstance(node, Input) and node.kind != "q" else model.n_heads
        if not (0 <= node.layer < model.n_layers and 0 <= getattr(node, "head", 0) < heads):
            raise UsageError(
                f"{node} does not exist in {model.name}: it has layers 0..{model.n_layers - 1}, heads "
                f"0..{model.n_heads - 1} and KV heads 0..{model.n_kv_heads - 1}"
            )
    return tuple(nodes)
