"""Interventions under TransformerLens and nnsight equal the edited map as they do under plain transformers."""

from __future__ import annotations

import pytest
import torch

from probe.interventions import CalibrateSinks, ForceAttention, Redistribute
from tests.probe.dense import dense
from tests.probe.every_door import tiny
from tests.probe.interventions.test_against_dense import KINDS, LENGTH, STEPS, case_for, move, prompt

DOORS = ("lens", "nnsight")


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def small(request):
    return tiny(request.param)


def through(model, door: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt, [batch, tokens, vocab]."""
    if door == "lens":
        return model.lens(ids)
    with model.nnsight.trace(ids):
        logits = model.nnsight.output.logits.save()
    return logits


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_prompt_through_a_door_equals_the_edited_map(small, door, kind):
    ids = prompt(seed=5)[:, :LENGTH]
    case = case_for(kind, small.hf)
    with small.intervene(case.intervention):
        found = through(small, door, ids)
    with dense(small.hf, case.map, case.output):
        expected = small.hf(ids).logits
    assert (expected - small.hf(ids).logits).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["redistributed", "calibrated", "scaled"])
@pytest.mark.parametrize("door", DOORS)
def test_cached_steps_through_a_door_equal_the_edited_map(small, door, kind):
    ids = prompt(seed=6)[:, :LENGTH]
    case = case_for(kind, small.hf)
    with small.intervene(case.intervention):
        if door == "lens":
            found = small.lens.generate(ids, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False)
        else:
            with small.nnsight.generate(ids, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False) as tracer:
                found = tracer.result.save()
    with dense(small.hf, case.map, case.output):
        expected = small.hf.generate(ids, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
    assert torch.equal(torch.as_tensor(found)[:, : expected.shape[1]], expected)


@torch.no_grad()
@pytest.mark.parametrize("door", DOORS)
def test_the_packaged_model_through_a_door(llama, door):
    ids = llama.tokens("The keeper climbed the stairs, lit the lamp, and wrote the date in his book. " * 3).ids[None]
    heads = [(12, 0), (18, 6), (19, 5), (20, 3)]
    last = ids.shape[1] - 1
    interventions = (
        CalibrateSinks(heads[:2], threshold=3.0),
        Redistribute([heads[2]], sources=[0], recipients=[5, 6], kept=0.2),
        ForceAttention([heads[3]], queries=[last], keys=[3, 9]),
    )

    def edit(p, layer, first):
        p, n = p.clone(), p.shape[-1]
        keys = torch.arange(n)
        for own, head in heads[:2]:
            if own == layer:
                means = p[0, head].sum(0) / torch.arange(n, 0, -1)
                sources = (means > 3 / n) & (keys > 0)
                p[:, head] = move(p[:, head], sources, ~sources, 0.4)
        if layer == 19:
            p[:, 5] = move(p[:, 5], keys == 0, (keys == 5) | (keys == 6), 0.2)
        if layer == 20:
            p[:, 3, last] = ((keys == 3) | (keys == 9)) / 2
        return p

    with llama.intervene(*interventions):
        found = through(llama, door, ids)
    with dense(llama.hf, edit):
        expected = llama.hf(ids).logits
    assert (expected - llama.hf(ids).logits).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
