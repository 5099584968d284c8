"""Tiny models with their edges, and pairs of random prompts for them."""

from __future__ import annotations

from functools import cache

import torch

from probe.edges.graph import EMBEDDING, EdgeCircuit, Graph
from probe.edges.wiring import Wiring
from probe.patching.pairs import Pairs
from tests.probe.architectures import VOCAB
from tests.probe.every_door import tiny

NAMES = ("gpt2", "llama", "gemma2", "qwen3")


@cache
def wired(name: str) -> Wiring:
    """A tiny model whose biases and gains are random too, which transformers begins at 0 and 1."""
    model = tiny(name)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return Wiring(model)


def some_pairs() -> Pairs:
    """Three pairs of seven tokens, the second with padding; corrupted in two places."""
    generator = torch.Generator().manual_seed(0)

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(3, VOCAB, shape, generator=generator)

    clean = ids(3, 7)
    corrupted = clean.clone()
    corrupted[:, [2, 4]] = ids(3, 2)
    padding = torch.ones(3, 7, dtype=torch.bool)
    padding[1, :2] = False
    return Pairs(clean, corrupted, padding, torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))


def of_nodes(graph: Graph, nodes: list) -> EdgeCircuit:
    """The circuit of all edges out of the embedding and out of these heads and MLPs."""
    return EdgeCircuit(graph, graph.exists & torch.tensor([each in (EMBEDDING, *nodes) for each in graph.senders]))


@torch.no_grad()
def differences(wiring: Wiring, pairs: Pairs, ids: torch.Tensor) -> torch.Tensor:
    """The logit differences of a plain run."""
    return pairs.logit_difference(wiring.model.logits(ids, padding=pairs.padding))
