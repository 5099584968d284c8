from __future__ import annotations

import pytest
import torch

from probe.analyses.heads.needle_runs import stopper
from probe.analyses.heads.pruned_runs import decode_pruned, prose_losses
from probe.analyses.heads.pruning_conditions import Condition
from probe.heads import Head
from probe.interventions import PruneHeads

NONE = Condition("none", 0, None)
SOME = (Head(18, 6), Head(18, 7), Head(17, 3), Head(17, 4), Head(23, 2), Head(3, 1))
MANY = tuple(Head(layer, head) for layer in range(10, 22) for head in range(5))
ROWS = [
    (NONE, ()),
    (Condition("top", 6, "zero"), SOME),
    (Condition("top", 6, "uniform"), SOME),
    (Condition("random", 60, "zero"), MANY),
    (Condition("random", 60, "uniform"), MANY),
]


@pytest.fixture(scope="module")
def question(llama):
    text = "The code word is tulip. Remember it.\nWhat is the code word, and which flower has this name?"
    return llama.tokens(llama.chat(text), bos=False).ids


def answers(model, ids, *, phase, rows=None, batch_size=16):
    rows = ROWS if rows is None else rows
    cache = model.prefill(ids[:-1]) if phase == "decode" else None
    written = decode_pruned(
        model, ids, rows, phase=phase, cache=cache, max_new_tokens=12, stop=stopper(model), batch_size=batch_size
    )
    return [model.tokenizer.decode(emitted, skip_special_tokens=True) for emitted in written]


@pytest.mark.parametrize("phase", ["decode", "all"])
def test_each_row_is_what_its_pruning_gives_alone(llama, question, phase):
    together = answers(llama, question, phase=phase)
    for (condition, heads), text in zip(ROWS, together, strict=True):
        pruning = [] if condition.fill is None else [PruneHeads(heads, fill=condition.fill, phase=phase)]
        with llama.intervene(*pruning):
            cache = llama.prefill(question[:-1])
            alone = llama.greedy(cache, question[None, -1:], max_new_tokens=12, stop=stopper(llama))[0]
        assert text == llama.tokenizer.decode(alone, skip_special_tokens=True)
    assert len(set(together)) >= 3  # the prunings do something, and not the same


def test_the_two_phases_differ(llama, question):
    assert answers(llama, question, phase="decode")[3:] != answers(llama, question, phase="all")[3:]


def test_the_batch_size_does_not_show(llama, question):
    assert answers(llama, question, phase="decode", batch_size=2) == answers(llama, question, phase="decode")


def test_the_cache_is_left_as_it_was(llama, question):
    cache = llama.prefill(question[:-1])
    before = [layer.keys.clone() for layer in cache.layers]
    decode_pruned(
        llama, question, ROWS, phase="decode", cache=cache, max_new_tokens=3, stop=stopper(llama), batch_size=3
    )
    for layer, keys in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_losses_equal_the_models_own(llama):
    ids = llama.tokens("The river runs past the old mill and under the bridge before it meets the sea.").ids
    losses = prose_losses(llama, ids, ROWS, batch_size=2)
    with torch.no_grad():
        own = float(llama.hf(input_ids=ids[None], labels=ids[None]).loss)
        with llama.intervene(PruneHeads(MANY, fill="uniform")):
            pruned = float(llama.hf(input_ids=ids[None], labels=ids[None]).loss)
    assert losses[0] == pytest.approx(own, rel=1e-5)
    assert losses[4] == pytest.approx(pruned, rel=1e-5)
    assert losses[4] > losses[0] + 0.1
