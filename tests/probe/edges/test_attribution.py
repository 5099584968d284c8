"""EAP against finite differences of runs with edges cut; sums that must come out; the toy model's exact scores."""

from __future__ import annotations

import pytest
import torch

from probe import Head, UsageError
from probe.edges.attribution import eap, eap_ig, grid
from probe.edges.graph import EdgeCircuit
from probe.edges.patched import Patched, logit_differences
from probe.edges.wiring import Wiring
from probe.interventions.base import Intervention
from probe.patching.nodes import Input
from probe.patching.pairs import Pairs
from tests.probe.edges.wired import NAMES, differences, some_pairs, wired
from tests.probe.toy_circuit import toy, toy_pairs


@pytest.mark.parametrize("name", [*NAMES, "gpt_neox", "olmo2"])
def test_eap_is_the_slope_of_cutting_an_edge_a_little(name):
    wiring, pairs = wired(name), some_pairs()
    graph, patched = wiring.graph, Patched(wiring, pairs)
    scores = eap(wiring, pairs)
    assert bool((scores.raw[~graph.exists] == 0).all())
    step = 4e-3
    edges = EdgeCircuit.random(graph, 40, seed=0).edges()
    found, slopes = [], []
    for edge in edges:
        sides = []
        for weight in (1 - step, 1 + step):
            weights = graph.exists.float()
            weights[graph.place(edge)] = weight
            sides.append(pairs.logit_difference(patched.logits(weights)).double())
        slopes.append(float((sides[0] - sides[1]).mean() / (2 * step)))
        found.append(float(scores.raw[graph.place(edge)]))
    assert max(map(abs, slopes)) > 0.2
    assert found == pytest.approx(slopes, rel=2e-2, abs=2e-3)


class Added(Intervention):
    """Adds a leaf to every layer's z, and keeps z."""

    def __init__(self) -> None:
        self.leaf: dict[int, torch.Tensor] = {}
        self.z: dict[int, torch.Tensor] = {}

    def after(self, call, output):
        self.z[call.layer] = output.detach()
        self.leaf[call.layer] = torch.zeros_like(output, requires_grad=True)
        return output + self.leaf[call.layer]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox"])
def test_edges_out_of_a_head_sum_to_attribution_patching_of_the_head(name):
    wiring, pairs = wired(name), some_pairs()
    clean, corrupted = Added(), Added()
    with wiring.model.intervene(corrupted):
        wiring.model.logits(pairs.corrupted, padding=pairs.padding)
    with wiring.model.intervene(clean):
        pairs.logit_difference(wiring.model.logits(pairs.clean, padding=pairs.padding)).sum().backward()
    wiring.model.hf.zero_grad(set_to_none=True)
    found = eap(wiring, pairs).raw.sum(0)
    for layer in range(2):
        change = corrupted.z[layer] - clean.z[layer]
        gradient = clean.leaf[layer].grad
        assert gradient is not None
        wanted = (change * gradient).sum((2, 3)).mean(0)
        assert wanted.abs().max() > 1e-2
        torch.testing.assert_close(found[wiring.graph.written(layer)], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_are_not_corrupted_give_every_edge_exactly_nothing(name):
    wiring, pairs = wired(name), some_pairs()
    same = Pairs(pairs.clean, pairs.clean, pairs.padding, pairs.good, pairs.bad)
    assert bool((eap_ig(wiring, same, steps=2).raw == 0).all())
    random = EdgeCircuit.random(wiring.graph, 30, seed=0)
    cut, whole = logit_differences(wiring, same, [random, EdgeCircuit.whole(wiring.graph)])
    assert torch.equal(cut, whole)


def test_integrated_over_embeddings_the_edges_out_of_the_embedding_sum_to_the_gap():
    wiring, pairs = wired("gpt2"), some_pairs()
    scores = eap_ig(wiring, pairs, steps=100)
    assert abs(scores.gap) > 0.02
    assert float(scores.raw.sum(0)[0]) == pytest.approx(scores.gap, abs=2e-3)
    assert abs(float(eap(wiring, pairs).raw.sum(0)[0]) - scores.gap) > 0.05


def test_standard_errors_are_those_over_prompts():
    wiring, pairs = wired("llama"), some_pairs()
    whole = eap_ig(wiring, pairs, steps=2, batch=2)
    single = torch.stack([eap_ig(wiring, pairs.take([row]), steps=2).raw for row in range(3)]).double()
    torch.testing.assert_close(whole.raw.double(), single.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.standard_error.double(), single.std(0) / 3**0.5, rtol=1e-3, atol=1e-5)
    assert bool(eap(wiring, pairs.take([0])).standard_error.isnan().all())
    torch.testing.assert_close(whole.clean, differences(wiring, pairs, pairs.clean))
    torch.testing.assert_close(whole.corrupted, differences(wiring, pairs, pairs.corrupted))


def test_the_toys_saturated_edge():
    """The gradient is 0 where attention is saturated, and few steps overshoot: 1 of 5 meets three keys that tie."""
    wiring, pairs = Wiring(toy()), toy_pairs()
    edge = (Head(0, 0), Input("q", 1, 0))
    place = wiring.graph.place(edge)
    assert float(eap(wiring, pairs).raw[place]) == pytest.approx(0, abs=1e-10)

    # S2's key moves with its query, and all three tie half way: -2 (60 + 60) / 3, over 5 steps
    assert float(eap_ig(wiring, pairs, steps=5).raw[place]) == pytest.approx(-16, abs=1e-3)


def test_points():
    assert grid(4, "left") == [0, 0.25, 0.5, 0.75] and grid(4, "right") == [0.25, 0.5, 0.75, 1]
    assert grid(2, "midpoint") == [0.25, 0.75] and grid(1, "right") == [1]
    wiring, pairs = wired("llama"), some_pairs()
    torch.testing.assert_close(eap_ig(wiring, pairs, steps=1, points="right").raw, eap(wiring, pairs).raw)
    ends = (eap_ig(wiring, pairs, steps=1, points=points).raw for points in ("left", "right"))
    left = eap_ig(wiring, pairs, steps=2, points="left").raw  # at the corrupted end and half way
    half = eap_ig(wiring, pairs, steps=1, points="midpoint").raw
    corrupted_end = next(ends)
    torch.testing.assert_close(left, (corrupted_end + half) / 2, rtol=1e-4, atol=1e-6)
    assert (left - next(ends)).abs().max() > 0.05


def test_rankings_and_tables():
    wiring, pairs = wired("llama"), some_pairs()
    scores = eap_ig(wiring, pairs, steps=2)
    values = scores.normalised[wiring.graph.exists]
    assert int((values < -1).sum()) > 3
    best = torch.stack([scores.normalised[scores.graph.place(edge)] for edge in scores.top(82)])
    assert torch.equal(best.abs(), values.abs().sort(descending=True).values)
    support = torch.stack([scores.normalised[scores.graph.place(edge)] for edge in scores.top(82, by="support")])
    assert torch.equal(support, values.sort(descending=True).values)
    assert scores.circuit(9).edges() == sorted(scores.top(9), key=scores.graph.place)
    table = scores.to_df(top=3)
    assert table["percent"].tolist() == best[:3].tolist() and table["sender"][0] == str(scores.top(1)[0].sender)
    with pytest.raises(UsageError, match="'magnitude' or 'support', got 'size'"):
        scores.top(3, by="size")
    with pytest.raises(UsageError, match=r"within 0\.\.82 edges, got 83"):
        scores.circuit(83)


def test_mistakes_are_one_line():
    wiring, pairs = wired("llama"), some_pairs()
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        eap_ig(wiring, pairs, steps=0)
    with pytest.raises(UsageError, match="'left', 'midpoint' or 'right', got 'centre'"):
        eap_ig(wiring, pairs, points="centre")
