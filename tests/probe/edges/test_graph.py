"""The graph: counts that others published, which pairs are edges, and what lies on a path."""

from __future__ import annotations

import pytest
import torch

from probe import Head, UsageError
from probe.edges.graph import EMBEDDING, LOGITS, Edge, EdgeCircuit, Graph
from probe.patching.nodes import MLP, Input


def graph(layers: int, heads: int, kv_heads: int, *, parallel: bool = False) -> Graph:
    return Graph(layers, heads, kv_heads, (parallel,) * layers)


@pytest.mark.parametrize(
    ("layers", "heads", "edges"), [(12, 12, 32_491), (24, 14, 179_749)], ids=["gpt2", "qwen2.5-0.5b"]
)
def test_counts_are_those_of_mib_where_keys_and_values_are_per_query_head(layers, heads, edges):
    assert graph(layers, heads, heads).edges == edges


def when(node) -> float:
    """When a node writes or reads, told from its layer alone: attention at .25 and .5 of a layer, MLPs at .75 and 1."""
    if node == EMBEDDING:
        return -1.0
    if node == LOGITS:
        return 1e9
    return node.layer + {Input: 0.25, Head: 0.5, MLP: 0.75}[type(node)]


@pytest.mark.parametrize("parallel", [False, True])
def test_there_is_an_edge_wherever_a_sender_writes_before_a_receiver_reads(parallel):
    found = graph(3, 4, 2, parallel=parallel)
    for row, receiver in enumerate(found.receivers):
        for column, sender in enumerate(found.senders):
            written = when(sender)
            if parallel and isinstance(sender, Head):
                written += 0.25  # seen by the next layer only
            wanted = written < when(receiver)
            assert bool(found.exists[row, column]) == wanted, Edge(sender, receiver)
    assert found.edges == int(found.exists.sum())
    assert found.layer_of(found.mlp(1)) == found.layer_of(found.attention(1).start) == 1
    assert found.layer_of(len(found.receivers) - 1) == 3


def test_a_head_writes_by_its_query_and_its_groups_key_and_value():
    found = graph(2, 4, 2)
    for sender in found.senders:
        read = {found.receivers[row] for row in found.decides[:, found.senders.index(sender)].nonzero()[:, 0].tolist()}
        if isinstance(sender, Head):
            layer, group = sender.layer, sender.head // 2
            assert read == {Input("q", *sender), Input("k", layer, group), Input("v", layer, group)}
        else:
            assert read == (set() if sender == EMBEDDING else {sender})


def test_places_and_edges_are_each_others_inverse_and_mistakes_are_one_line():
    found = graph(2, 4, 2)
    edge = Edge(Head(0, 3), Input("v", 1, 1))
    assert found.edge(*found.place(edge)) == edge and str(edge) == "L0H3->L1V1"
    with pytest.raises(UsageError, match="no edge L1H0->L1Q0: L1H0 writes after L1Q0 has read"):
        found.place((Head(1, 0), Input("q", 1, 0)))
    with pytest.raises(UsageError, match="an end that this model does not have"):
        found.place((Head(0, 9), LOGITS))
    with pytest.raises(UsageError, match="pairs that are no edges"):
        EdgeCircuit(found, torch.ones_like(found.exists))
    with pytest.raises(UsageError, match=r"within 0\.\.82 edges, got 83"):
        EdgeCircuit.random(found, 83, seed=0)


def test_what_is_on_no_path_is_pruned():
    found = graph(2, 4, 2)
    path = [
        (EMBEDDING, Input("k", 0, 1)),  # feeds heads 0.2 and 0.3
        (Head(0, 2), MLP(0)),
        (MLP(0), Input("q", 1, 0)),
        (Head(1, 0), LOGITS),
    ]
    dangling = [
        (EMBEDDING, Input("q", 0, 0)),  # nothing hears 0.0
        (Head(0, 1), MLP(1)),  # nothing feeds 0.1, so MLP 1 has nothing to add
        (MLP(1), LOGITS),
        (Head(0, 3), Input("v", 1, 1)),  # fed, but nothing hears 1.2 or 1.3
    ]
    circuit = EdgeCircuit.of_edges(found, path + dangling)
    assert set(circuit.pruned().edges()) == {Edge(*edge) for edge in path}
    assert circuit.pruned().nodes() == [Head(0, 2), Head(0, 3), MLP(0), Head(1, 0)]
    assert len(circuit) == 8 and len(circuit.without(dangling)) == 4
    assert len(EdgeCircuit.whole(found).pruned()) == found.edges
    assert len(EdgeCircuit.of_edges(found, path[1:]).pruned()) == 0


def test_random_circuits_have_their_size_and_their_seed():
    found = graph(2, 4, 2)
    one = EdgeCircuit.random(found, 20, seed=1)
    assert len(one) == 20 and torch.equal(one.kept, EdgeCircuit.random(found, 20, seed=1).kept)
    assert not torch.equal(one.kept, EdgeCircuit.random(found, 20, seed=2).kept)
    counts = torch.stack([EdgeCircuit.random(found, 41, seed=seed).kept for seed in range(400)]).sum(0)
    assert bool((counts[found.exists] > 140).all()) and int(counts[~found.exists].sum()) == 0  # 200 expected, sd 10
