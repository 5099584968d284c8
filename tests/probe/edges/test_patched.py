"""Runs with edges cut against plain runs, activation patching and operands patched by hand."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from probe import Head, UsageError
from probe.edges.graph import EMBEDDING, LOGITS, EdgeCircuit
from probe.edges.patched import Patched, edge_effects, logit_differences
from probe.edges.wiring import Wiring
from probe.interventions.base import Intervention
from probe.interventions.outputs import PatchHeads
from probe.patching.nodes import MLP, Input
from tests.probe.edges.wired import NAMES, differences, of_nodes, some_pairs, wired
from tests.probe.every_door import tiny
from tests.probe.toy_circuit import toy, toy_pairs


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "gpt_neox", "gemma3", "mixtral"])
def test_with_every_edge_kept_it_is_the_clean_run_and_with_none_the_corrupted_one(name):
    wiring, pairs = wired(name), some_pairs()
    clean, corrupted = (differences(wiring, pairs, ids) for ids in (pairs.clean, pairs.corrupted))
    assert (clean - corrupted).abs().min() > 1e-3
    whole, empty = EdgeCircuit.whole(wiring.graph), EdgeCircuit.empty(wiring.graph)
    found = logit_differences(wiring, pairs, [whole, empty])
    close(found, torch.stack([clean, corrupted]))
    close(logit_differences(wiring, pairs, [whole, empty], batch=2), found)
    close(differences(wiring, pairs, pairs.clean), clean)  # nothing is left on the model
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in wiring.model.hf.modules())


def test_a_model_in_bfloat16_has_edges():
    model = tiny("llama")
    model.hf.bfloat16()
    wiring, pairs = Wiring(model), some_pairs()
    ends = [differences(wiring, pairs, ids).float() for ids in (pairs.clean, pairs.corrupted)]
    found = logit_differences(wiring, pairs, [EdgeCircuit.whole(wiring.graph), EdgeCircuit.empty(wiring.graph)])
    torch.testing.assert_close(found, torch.stack(ends), rtol=0.05, atol=0.1)


@torch.no_grad()
def patched_nodes(wiring, pairs, nodes) -> torch.Tensor:
    """Logit differences of the clean run in which these heads and MLPs write what they write when corrupted."""
    model, mlp = wiring.model, {}
    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.enter_context(model.stream.writing(layer, lambda s, layer=layer: mlp.setdefault(layer, s.clone())))
        z = model.head_outputs(pairs.corrupted, padding=pairs.padding)
    heads = [node for node in nodes if isinstance(node, Head)]
    with ExitStack() as stack:
        stack.enter_context(model.intervene(PatchHeads(heads, source=z)))
        for node in nodes:
            if isinstance(node, MLP):
                stack.enter_context(model.stream.writing(node.layer, lambda _, layer=node.layer: mlp[layer]))
        return differences(wiring, pairs, pairs.clean)


@pytest.mark.parametrize("name", [*NAMES, "gpt_neox"])
def test_a_circuit_of_nodes_is_activation_patching_of_the_others(name):
    wiring, pairs = wired(name), some_pairs()
    graph, results = wiring.graph, []
    layer = [Head(1, head) for head in range(4)]
    for others in ([MLP(0)], layer, [*layer, MLP(1)], [Head(0, 1), Head(1, 2)], [Head(0, 1), MLP(0), Head(1, 2)]):
        circuit = of_nodes(graph, [node for node in graph.senders[1:] if node not in others])
        found = logit_differences(wiring, pairs, [circuit])[0]
        close(found, patched_nodes(wiring, pairs, others))
        results.append(found)
    assert (torch.stack(results).diff(dim=0).abs().amax(1) > 1e-3).all()


class Operands(Intervention):
    """Keeps the operands of every layer, or puts kept ones in the place of one receiver's."""

    def __init__(self, kept: dict | None = None, receiver: Input | None = None) -> None:
        self.kept = {} if kept is None else kept
        self.receiver = receiver

    def before(self, call):
        if self.receiver is None:
            self.kept[call.layer] = call
        elif call.layer == self.receiver.layer:
            name = {"q": "query", "k": "key", "v": "value"}[self.receiver.kind]
            states = getattr(call, name).clone()
            states[:, self.receiver.head] = getattr(self.kept[call.layer], name)[:, self.receiver.head]
            call = replace(call, **{name: states})
        return call


@pytest.mark.parametrize("name", [*NAMES, "gpt_neox"])
@pytest.mark.parametrize("receiver", [Input("q", 1, 2), Input("k", 1, 1), Input("v", 0, 1), Input("q", 0, 3)], ids=str)
def test_cutting_all_edges_into_a_receiver_patches_what_it_reads(name, receiver):
    wiring, pairs = wired(name), some_pairs()
    corrupted = Operands()
    with wiring.model.intervene(corrupted):
        differences(wiring, pairs, pairs.corrupted)
    with wiring.model.intervene(Operands(corrupted.kept, receiver)):
        wanted = differences(wiring, pairs, pairs.clean)
    kept = wiring.graph.exists.clone()
    kept[wiring.graph.receivers.index(receiver)] = False
    close(logit_differences(wiring, pairs, [EdgeCircuit(wiring.graph, kept)])[0], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_an_edge_to_the_logits_moves_the_last_stream_by_what_its_sender_changed(name):
    wiring, pairs = wired(name), some_pairs()
    embeddings: list[torch.Tensor] = []
    with wiring.model.stream.entering(0, lambda states: embeddings.append(states.clone()) or states):
        for ids in (pairs.clean, pairs.corrupted):
            differences(wiring, pairs, ids)

    def shifted(layer, forward, states):
        left = forward(states)
        left = left[0] if isinstance(left, tuple) else left
        return left + (embeddings[1] - embeddings[0] if layer == 1 else 0)

    with wiring.model.stream.replacing(shifted):
        wanted = differences(wiring, pairs, pairs.clean)
    whole = EdgeCircuit.whole(wiring.graph)
    close(logit_differences(wiring, pairs, [whole.without([(EMBEDDING, LOGITS)])])[0], wanted)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_what_pruning_leaves_out_changes_nothing(name):
    wiring, pairs = wired(name), some_pairs()
    circuits = [EdgeCircuit.random(wiring.graph, size, seed=seed) for size, seed in ((30, 2), (40, 3), (50, 0))]
    pruned = [circuit.pruned() for circuit in circuits]
    assert all(0 < len(less) < len(more) for less, more in zip(pruned, circuits, strict=True))
    close(logit_differences(wiring, pairs, pruned), logit_differences(wiring, pairs, circuits))


def test_layers_that_nothing_feeds_write_what_they_write_when_corrupted():
    wiring, pairs = wired("llama"), some_pairs()
    unfed = EdgeCircuit.of_edges(wiring.graph, [(Head(0, 0), LOGITS), (MLP(0), LOGITS), (MLP(1), LOGITS)])
    patched = Patched(wiring, pairs)
    torch.use_deterministic_algorithms(True)  # memory that is not written to holds NaN
    try:
        found = pairs.logit_difference(patched.logits(unfed.kept))
    finally:
        torch.use_deterministic_algorithms(False)
    close(found, differences(wiring, pairs, pairs.corrupted))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_effects_of_edges_are_those_of_whole_runs(name):
    wiring, pairs = wired(name), some_pairs()
    whole = EdgeCircuit.whole(wiring.graph)
    edges = [*EdgeCircuit.random(wiring.graph, 12, seed=0).edges(), (MLP(1), LOGITS)]
    effects = edge_effects(wiring, pairs, edges, batch=2)
    assert list(effects.nodes) == edges and int((effects.raw.abs() > 1e-5).sum()) >= 11
    close(effects.patched, logit_differences(wiring, pairs, [whole.without([edge]) for edge in edges]))
    close(effects.corrupted, differences(wiring, pairs, pairs.corrupted))


def test_the_edges_of_the_toy_do_what_they_were_built_for():
    wiring = Wiring(toy())
    edges = {
        (Head(0, 0), Input("q", 1, 0)): -4.0,  # S2 is inhibited instead of the other name
        (Head(1, 0), LOGITS): -4.0,
        (Head(1, 1), LOGITS): -1.0,
        (Head(0, 0), Input("k", 1, 0)): 0.0,
        (Head(0, 1), LOGITS): 0.0,
        (Head(0, 0), LOGITS): 0.0,
    }
    assert edge_effects(wiring, toy_pairs(), list(edges)).raw.tolist() == pytest.approx(list(edges.values()), abs=1e-5)


def test_mistakes_are_one_line():
    wiring = wired("llama")
    patched = Patched(wiring, some_pairs())
    with pytest.raises(UsageError, match=r"weights must be \[19, 11\], got \[3, 3\]"):
        patched.logits(torch.ones(3, 3))
    with pytest.raises(UsageError, match="a run from layer 1 on needs the changes"):
        patched.run(wiring.graph.exists, start=1)
