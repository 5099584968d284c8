"""Who writes to the residual stream, and who reads it? A model is a graph of senders and receivers.

Senders are the embedding, the heads and the MLPs. Receivers are the queries of each head, the keys and values of each
KV head, the input of each MLP, and the logits. The stream is a sum, so the input of a receiver is the sum of the writes
of all senders before it. Each summand is an edge: there is one from every sender to every receiver that comes after it.

Keys and values are received by KV heads, because the query heads of a group read the same ones. MIB's graph has a key
and a value for each query head, so it counts more edges on models with grouped queries. On models without them the
counts agree (32,491 edges for GPT-2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.patching.nodes import MLP, Input

EMBEDDING, LOGITS = "embedding", "logits"

Sender = str | Head | MLP
Receiver = str | Input | MLP


class Edge(NamedTuple):
    """The write of `sender` as `receiver` reads it. It prints as L0H3->L2Q1."""

    sender: Sender
    receiver: Receiver

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"


@dataclass(frozen=True)
class Graph:
    """The senders and receivers of a model in the order of their layers. Tensors over edges are [receivers, senders].

    senders: the embedding, then each layer's heads and MLP. receivers: each layer's q, k, v and MLP, then the logits.
    parallel: by layer, True if its MLP reads the stream as its attention does, without the writes of the layer's heads.
    """

    layers: int
    heads: int
    kv_heads: int
    parallel: tuple[bool, ...]

    @cached_property
    def senders(self) -> tuple[Sender, ...]:
        """Return the embedding, then each layer's heads and MLP."""
        found: list[Sender] = [EMBEDDING]
        for layer in range(self.layers):
            found += [Head(layer, head) for head in range(self.heads)]
            found.append(MLP(layer))
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """Return each layer's queries, keys, values and MLP, then the logits."""
        found: list[Receiver] = []
        for layer in range(self.layers):
            found += [Input("q", layer, head) for head in range(self.heads)]
            found += [Input(kind, layer, head) for kind in "kv" for head in range(self.kv_heads)]
            found.append(MLP(layer))
        return (*found, LOGITS)

    @cached_property
    def reach(self) -> Tensor:
        """Return the number of senders before each receiver, [receivers]; they are the first ones in `senders`."""
        counts: list[int] = []
        for layer in range(self.layers):
            before = self.entering(layer)
            counts += [before] * (self.heads + 2 * self.kv_heads)
            counts.append(before if self.parallel[layer] else before + self.heads)
        return torch.tensor([*counts, len(self.senders)])

    @cached_property
    def exists(self) -> Tensor:
        """Return which pairs are edges, [receivers, senders] bool."""
        return torch.arange(len(self.senders)) < self.reach[:, None]

    @property
    def edges(self) -> int:
        """Return the number of edges."""
        return int(self.reach.sum())

    def entering(self, layer: int) -> int:
        """Return the number of senders that write before `layer`; its heads and its MLP come next."""
        return 1 + layer * (self.heads + 1)

    def attention(self, layer: int) -> slice:
        """Return the rows of a layer's queries, keys and values."""
        start = layer * (self.heads + 2 * self.kv_heads + 1)
        return slice(start, start + self.heads + 2 * self.kv_heads)

    def mlp(self, layer: int) -> int:
        """Return the row of a layer's MLP."""
        return self.attention(layer).stop

    def layer_of(self, receiver: int) -> int:
        """Return the layer of a row; that of the logits is the number of layers."""
        return receiver // (self.heads + 2 * self.kv_heads + 1)

    def written(self, layer: int) -> slice:
        """Return the columns of a layer's heads."""
        return slice(self.entering(layer), self.entering(layer) + self.heads)

    @cached_property
    def decides(self) -> Tensor:
        """Return [receivers, senders] bool, True where a receiver is an input of a sender.

        A head has its query and the key and value of its group as inputs, an MLP its own input.
        """
        found = torch.zeros_like(self.exists)
        group = torch.arange(self.heads) // (self.heads // self.kv_heads)
        for layer in range(self.layers):
            rows, heads = self.attention(layer), torch.arange(self.heads) + self.entering(layer)
            for place in (torch.arange(self.heads), self.heads + group, self.heads + self.kv_heads + group):
                found[rows.start + place, heads] = True
            found[self.mlp(layer), self.written(layer).stop] = True
        return found

    def place(self, edge: Edge | tuple[Sender, Receiver]) -> tuple[int, int]:
        """Return the row and column of an edge in tensors over edges. Raises UsageError if there is no such edge."""
        sender, receiver = edge
        if sender not in self.senders or receiver not in self.receivers:
            raise UsageError(f"{Edge(*edge)} has an end that this model does not have: it has {self.describe()}")
        row, column = self.receivers.index(receiver), self.senders.index(sender)
        if not self.exists[row, column]:
            raise UsageError(
                f"there is no edge {Edge(*edge)}: {sender} writes after {receiver} has read; name an earlier sender"
            )
        return row, column

    def edge(self, row: int, column: int) -> Edge:
        """Return the edge at a row and column of tensors over edges."""
        return Edge(self.senders[column], self.receivers[row])

    def describe(self) -> str:
        """Return the numbers of edges, senders and receivers in words."""
        return f"{self.edges:,} edges from {len(self.senders):,} senders to {len(self.receivers):,} receivers"


@dataclass(frozen=True, eq=False)
class EdgeCircuit:
    """A circuit keeps some of a graph's edges: kept [receivers, senders] bool. The others carry the corrupted write."""

    graph: Graph
    kept: Tensor

    def __post_init__(self) -> None:
        graph = self.graph
        if self.kept.shape != graph.exists.shape or self.kept.dtype != torch.bool:
            raise UsageError(
                f"kept must be bool {list(graph.exists.shape)}, got {list(self.kept.shape)} of {self.kept.dtype}"
            )
        if bool((self.kept & ~graph.exists).any()):
            raise UsageError("kept is True for pairs that are no edges: pass kept & graph.exists")

    def __len__(self) -> int:
        return int(self.kept.sum())

    @classmethod
    def whole(cls, graph: Graph) -> EdgeCircuit:
        """Return the circuit of all edges."""
        return cls(graph, graph.exists.clone())

    @classmethod
    def empty(cls, graph: Graph) -> EdgeCircuit:
        """Return the circuit without edges."""
        return cls(graph, torch.zeros_like(graph.exists))

    @classmethod
    def of_edges(cls, graph: Graph, edges: Sequence[Edge | tuple[Sender, Receiver]]) -> EdgeCircuit:
        """Return the circuit of these edges. Raises UsageError for one that the graph does not have."""
        found = cls.empty(graph)
        for edge in edges:
            found.kept[graph.place(edge)] = True
        return found

    @classmethod
    def of_places(cls, graph: Graph, places: Sequence[int] | Tensor) -> EdgeCircuit:
        """Return the circuit of edges given by their places in flat tensors over edges."""
        found = cls.empty(graph)
        found.kept.view(-1)[places] = True
        return found

    @classmethod
    def random(cls, graph: Graph, size: int, *, seed: int) -> EdgeCircuit:
        """Return a circuit of `size` edges drawn at random, all with the same probability."""
        places = graph.exists.flatten().nonzero()[:, 0]
        if not 0 <= size <= len(places):
            raise UsageError(f"the size of a circuit must be within 0..{len(places)} edges, got {size}")
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        return cls.of_places(graph, places[order[:size]])

    def without(self, edges: Sequence[Edge | tuple[Sender, Receiver]]) -> EdgeCircuit:
        """Return the circuit without these edges."""
        return EdgeCircuit(self.graph, self.kept & ~self.of_edges(self.graph, edges).kept)

    def edges(self) -> list[Edge]:
        """Return the edges, by receiver, then sender."""
        return [self.graph.edge(row, column) for row, column in self.kept.nonzero().tolist()]

    def nodes(self) -> list[Sender]:
        """Return the heads and MLPs at either end of an edge; a key or value stands for all heads that read it."""
        graph = self.graph
        ends = self.kept.any(0) | (graph.decides & self.kept.any(1)[:, None]).any(0)
        return [sender for sender, end in zip(graph.senders[1:], ends[1:].tolist(), strict=True) if end]

    def pruned(self) -> EdgeCircuit:
        """Return the circuit of the edges on a path from the embedding to the logits.

        The two circuits give the same logits. A sender that no path from the embedding reaches writes what it writes in
        the corrupted prompt, and the write of a sender without a path to the logits cannot change them.
        """
        graph, kept = self.graph, self.kept.clone()
        for column in range(1, len(graph.senders)):  # in order: whatever feeds one is decided before it
            if not bool(kept[graph.decides[:, column]].any()):
                kept[:, column] = False
        heard = torch.zeros(len(graph.receivers), dtype=torch.bool)
        heard[-1] = True
        for column in reversed(range(len(graph.senders))):
            if bool((kept[:, column] & heard).any()):
                heard |= graph.decides[:, column]
        return EdgeCircuit(graph, kept & heard[:, None])
