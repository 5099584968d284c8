"""ACDC on models whose circuit is known, and what it says it costs."""

from __future__ import annotations

import pytest
import torch

from probe import Head, UsageError
from probe.edges.acdc import _groups, acdc, acdc_cost
from probe.edges.graph import EMBEDDING, LOGITS, Edge, EdgeCircuit
from probe.edges.patched import Patched, logit_differences
from probe.edges.wiring import Wiring
from probe.patching.nodes import MLP, Input
from tests.probe.edges.wired import differences, of_nodes, some_pairs, wired
from tests.probe.toy_circuit import toy, toy_pairs

CIRCUIT = {
    Edge(EMBEDDING, Input("v", 0, 0)),  # S2's token
    Edge(Head(0, 0), Input("q", 1, 0)),
    Edge(Head(1, 0), LOGITS),
    Edge(EMBEDDING, Input("v", 1, 1)),
    Edge(Head(1, 1), LOGITS),
}


@pytest.mark.parametrize("metric", ["kl", "difference"])
def test_the_toys_circuit_is_found_exactly(metric):
    wiring, visited = Wiring(toy()), []
    found = acdc(wiring, toy_pairs(), tau=0.01, metric=metric, progress=lambda *counts: visited.append(counts))
    assert set(found.circuit.edges()) == CIRCUIT and found.divergence == pytest.approx(0, abs=1e-6)
    cost = acdc_cost(wiring.graph)
    assert visited == [(count, 46) for count in range(1, 47)] and cost.runs == 46
    assert len(CIRCUIT) < found.runs < cost.runs  # receivers that nobody hears cost no run


def test_from_a_threshold_on_weak_paths_go_and_then_all():
    """Without 1.1 the logit difference falls by 0.5 in the model and by 1 to its corrupted value; without 1.0 by 4."""
    wiring = Wiring(toy())
    weak = acdc(wiring, toy_pairs(), tau=1.5, metric="difference")
    assert set(weak.circuit.edges()) == {edge for edge in CIRCUIT if Head(1, 1) not in edge and "L1V1" not in str(edge)}
    assert weak.divergence == pytest.approx(1, abs=1e-5)
    nothing = acdc(wiring, toy_pairs(), tau=10, metric="difference")
    assert len(nothing.circuit) == 0 and nothing.divergence == pytest.approx(5, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_what_is_left_diverges_by_what_it_says(name):
    wiring, pairs = wired(name), some_pairs()
    found = acdc(wiring, pairs, tau=0.02, metric="difference", batch=2)
    assert 0 < len(found.circuit) < wiring.graph.edges
    whole, circuit = logit_differences(wiring, pairs, [EdgeCircuit.whole(wiring.graph), found.circuit])
    assert found.divergence == pytest.approx(float((whole - circuit).mean()), abs=1e-5)
    by_kl = acdc(wiring, pairs, tau=0.02)
    patched = Patched(wiring, pairs)
    p, q = (patched.logits(kept).double().log_softmax(-1) for kept in (wiring.graph.exists, by_kl.circuit.kept))
    wanted = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert by_kl.divergence == pytest.approx(float(wanted), abs=1e-6) and float(wanted) > 1e-4


def test_a_search_can_be_confined():
    wiring, pairs = wired("llama"), some_pairs()
    graph = wiring.graph
    blocks = acdc(wiring, pairs, tau=1e9, unit="block", layers=[1])
    left = {graph.layer_of(row) for row in blocks.circuit.kept.any(1).nonzero()[:, 0].tolist()}
    assert left == {0, 2} and blocks.circuit.kept.sum() == graph.exists[[*range(9), 18]].sum()
    start = of_nodes(graph, [Head(0, 1), MLP(0), Head(1, 2)])
    within = acdc(wiring, pairs, tau=0.01, within=start)
    assert 0 < len(within.circuit) < len(start) and not bool((within.circuit.kept & ~start.kept).any())
    logits = acdc(wiring, pairs, tau=1e9, metric="difference", unit="block", layers=[2])
    clean, corrupted = (float(differences(wiring, pairs, ids).mean()) for ids in (pairs.clean, pairs.corrupted))
    assert len(logits.circuit) == graph.edges - 11
    assert logits.divergence == pytest.approx(clean - corrupted, abs=1e-5)


def test_receivers_are_visited_from_the_logits_back_and_senders_the_latest_first():
    graph = wired("llama").graph
    order = [graph.edge(rows.start, columns.start) for rows, columns in _groups(graph, "edge", None)]
    assert order == EdgeCircuit.whole(graph).edges()[::-1]
    assert [str(edge) for edge in order[:2]] == ["MLP1->logits", "L1H3->logits"]
    blocks = [(rows, columns) for rows, columns in _groups(graph, "block", [1])]
    assert [columns.start for _, columns in blocks] == [6, 5, 1, 0, 5, 1, 0]  # of MLP 1: heads, MLP, heads, embedding


def test_costs():
    graph = wired("llama").graph  # 2 layers: 8 receivers of attention and an MLP each, and the logits
    every = acdc_cost(graph)
    assert every.runs == 82
    assert every.forwards == pytest.approx(8 + 5 + (8 * 6 + 10) / 2)  # layer 0 whole, layer 1 half, the logits nothing
    blocks = acdc_cost(graph, unit="block")
    assert (blocks.runs, blocks.forwards) == (1 + 2 + 3 + 4 + 5, 1 + 2 + (3 + 4) / 2)
    assert acdc_cost(graph, layers=[2]).runs == 11
    assert acdc_cost(graph, within=EdgeCircuit.of_edges(graph, [(MLP(0), LOGITS)])).runs == 1


def test_mistakes_are_one_line():
    wiring, pairs = wired("llama"), some_pairs()
    with pytest.raises(UsageError, match="metric must be 'kl' or 'difference', got 'loss'"):
        acdc(wiring, pairs, tau=1, metric="loss")
    with pytest.raises(UsageError, match="unit must be 'edge' or 'block', got 'node'"):
        acdc_cost(wiring.graph, unit="node")
    with pytest.raises(UsageError, match=r"layers must be within 0\.\.2 \(2 is the logits\), got 3"):
        acdc_cost(wiring.graph, layers=[3])
