"""Faithfulness by size: areas by hand, the toy's curve, and runs of the circuits of tiny models."""

from __future__ import annotations

import pytest
import torch

from probe import UsageError
from probe.edges.attribution import eap, eap_ig
from probe.edges.curves import PERCENTS, area, circuit_curve
from probe.edges.graph import EdgeCircuit
from probe.edges.patched import edge_effects, logit_differences
from probe.edges.scores import EdgeScores
from probe.edges.wiring import Wiring
from probe.patching.pairs import PromptPair, pairs
from tests.probe.edges.wired import NAMES, some_pairs, wired
from tests.probe.toy_circuit import toy, toy_pairs


def test_areas():
    assert float(area(torch.ones(10), PERCENTS)) == pytest.approx(0.999)  # from 0.1 % on
    assert float(area(torch.tensor(PERCENTS) / 100, PERCENTS)) == pytest.approx((1 - 0.001**2) / 2)
    assert float(area(torch.tensor([1.0, 0.0, 3.0]), [50, 75, 100])) == pytest.approx(0.125 + 0.375)


def test_the_toys_curve():
    wiring, prompts = Wiring(toy()), toy_pairs()
    effects = edge_effects(wiring, prompts, EdgeCircuit.whole(wiring.graph).edges())
    raw = torch.zeros(wiring.graph.exists.shape)
    raw[wiring.graph.exists] = effects.raw.float()
    scores = EdgeScores(wiring.graph, raw, torch.zeros_like(raw), effects.clean, effects.corrupted, "exact")
    counted = []
    curve = circuit_curve(
        wiring, prompts, scores, percents=(4, 7, 18, 50, 100), progress=lambda *counts: counted.append(counts)
    )
    assert curve.sizes == (1, 3, 8, 23, 46) and curve.connected[:2] == (0, 3) and curve.connected[-1] == 46
    # embedding -> 0.0 -> 1.0 -> logits is 4 of the 5; with 1.1 all, and so is the rest
    assert curve.faithfulness.tolist() == pytest.approx([0, 0.8, 1, 1, 1], abs=1e-5)
    assert curve.cpr == pytest.approx((0.4 * 3 + 0.9 * 11 + 32 + 50) / 100)
    assert curve.cpr + curve.cmd == pytest.approx(0.96)
    assert counted[-1][0] == counted[-1][1] and curve.random.shape == (3, 5, 2)
    table = curve.to_df()
    assert table["faithfulness"].tolist() == curve.faithfulness.tolist()
    assert (table["random_least"] <= table["random"]).all() and table["random"].iloc[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_points_of_a_curve_are_runs_of_its_circuits(name):
    wiring, prompts = wired(name), some_pairs()
    scores = eap_ig(wiring, prompts, steps=3)
    curve = circuit_curve(wiring, prompts, scores, by="support", percents=(20, 60), draws=2, seed=5)
    best = [scores.circuit(size, by="support") for size in curve.sizes]
    assert curve.sizes == (wiring.graph.edges // 5, wiring.graph.edges * 3 // 5)
    torch.testing.assert_close(curve.difference, logit_differences(wiring, prompts, best), rtol=1e-5, atol=1e-5)
    drawn = [EdgeCircuit.random(wiring.graph, size, seed=seed) for seed in (5, 6) for size in curve.sizes]
    wanted = logit_differences(wiring, prompts, drawn).view(2, 2, 3)
    torch.testing.assert_close(curve.random, wanted, rtol=1e-5, atol=1e-5)
    assert (curve.random[0] - curve.random[1]).abs().max() > 1e-4
    f = (curve.difference.mean(1) - scores.corrupted.mean()) / (scores.clean.mean() - scores.corrupted.mean())
    torch.testing.assert_close(curve.faithfulness.float(), f, rtol=1e-4, atol=1e-4)
    assert curve.cpr == pytest.approx(float(f.mean()) * 0.4, abs=1e-4)
    assert circuit_curve(wiring, prompts, scores, percents=(50,), draws=0).to_df().columns.tolist() == [
        "percent", "edges", "connected", "faithfulness",
    ]  # fmt: skip


@pytest.mark.slow
def test_one_percent_of_the_edges_does_ioi(llama):
    """On other prompts than the scores come from, 1 % of the edges keeps most of the answer; random ones none."""
    names = [("Mary", "John"), ("Tom", "James"), ("Sarah", "Anna"), ("Paul", "Mark")]

    def ioi(place: str, item: str):
        start = "Then, {} and {} went to the {}. {} gave a {} to"
        return pairs(
            llama,
            [
                PromptPair(start.format(io, s, place, s, item), start.format(io, s, place, io, item), f" {io}", f" {s}")
                for io, s in names
            ],
        )

    wiring = Wiring(llama)
    assert wiring.graph.edges == 70_651
    scores = eap_ig(wiring, ioi("store", "drink"), steps=5)
    curve = circuit_curve(wiring, ioi("park", "ring"), scores, percents=(1.0,), draws=1)
    assert float(curve.faithfulness[0]) > 0.7 and abs(float(curve.random_faithfulness[0, 0])) < 0.05


def test_mistakes_are_one_line():
    wiring, prompts = wired("llama"), some_pairs()
    scores = eap(wiring, prompts)
    for percents in ((), (50, 20), (0, 50), (50, 120)):
        with pytest.raises(UsageError, match=r"percents must rise within 0\.\.100"):
            circuit_curve(wiring, prompts, scores, percents=percents)
