from __future__ import annotations

import pytest
import torch

from probe.analyses.heads.needle_runs import stopper
from probe.analyses.heads.pruned_runs import decode_pruned, prose_losses
from probe.analyses.heads.pruning_conditions import Condition
from probe.heads import Head
from probe.interventions import PruneHeads
from tests.probe.every_door import some_ids, tiny

NONE = Condition("none", 0, None)
SOME = (Head(0, 1), Head(1, 2))
MANY = tuple(Head(layer, head) for layer in range(2) for head in range(3))
ROWS = [
    (NONE, ()),
    (Condition("top", 2, "zero"), SOME),
    (Condition("top", 2, "uniform"), SOME),
    (Condition("random", 6, "zero"), MANY),
    (Condition("random", 6, "uniform"), MANY),
]


@pytest.fixture(scope="module")
def model():
    """A tiny model whose attention decides what it says: its values and outputs are large."""
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.hf.model.layers:
            layer.self_attn.v_proj.weight.mul_(20)
            layer.self_attn.q_proj.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def question(model):
    return some_ids()[0]


def answers(model, ids, *, phase, rows=None, batch_size=16):
    rows = ROWS if rows is None else rows
    cache = model.prefill(ids[:-1]) if phase == "decode" else None
    written = decode_pruned(
        model, ids, rows, phase=phase, cache=cache, max_new_tokens=6, stop=stopper(model), batch_size=batch_size
    )
    return [model.tokenizer.decode(emitted, skip_special_tokens=True) for emitted in written]


@pytest.mark.parametrize("phase", ["decode", "all"])
def test_each_row_is_what_its_pruning_gives_alone(model, question, phase):
    together = answers(model, question, phase=phase)
    for (condition, heads), text in zip(ROWS, together, strict=True):
        pruning = [] if condition.fill is None else [PruneHeads(heads, fill=condition.fill, phase=phase)]
        with model.intervene(*pruning):
            cache = model.prefill(question[:-1])
            alone = model.greedy(cache, question[None, -1:], max_new_tokens=6, stop=stopper(model))[0]
        assert text == model.tokenizer.decode(alone, skip_special_tokens=True)
    assert len(set(together)) >= 3  # the prunings do something, and not the same


def test_the_two_phases_differ(model, question):
    assert answers(model, question, phase="decode")[3:] != answers(model, question, phase="all")[3:]


def test_the_batch_size_does_not_show(model, question):
    assert answers(model, question, phase="decode", batch_size=2) == answers(model, question, phase="decode")


def test_the_cache_is_left_as_it_was(model, question):
    cache = model.prefill(question[:-1])
    before = [layer.keys.clone() for layer in cache.layers]
    decode_pruned(
        model, question, ROWS, phase="decode", cache=cache, max_new_tokens=3, stop=stopper(model), batch_size=3
    )
    for layer, keys in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_losses_equal_the_models_own(model):
    ids = some_ids(tokens=30)[0]
    losses = prose_losses(model, ids, ROWS, batch_size=2)
    with torch.no_grad():
        own = float(model.hf(input_ids=ids[None], labels=ids[None]).loss)
        with model.intervene(PruneHeads(MANY, fill="uniform")):
            pruned = float(model.hf(input_ids=ids[None], labels=ids[None]).loss)
    assert losses[0] == pytest.approx(own, rel=1e-5)
    assert losses[4] == pytest.approx(pruned, rel=1e-5)
    assert losses[4] > losses[0] + 0.1
