"""The nnsight door: recordings and interventions around traces and generation, and patches made inside a trace."""

from __future__ import annotations

import pytest
import torch

import probe
from tests.probe.architectures import build
from tests.probe.every_door import STATS, assert_same_statistics, some_ids, tiny, tiny_tokenizer

TEXT = "The cat sat on the mat. The cat sat"


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_oss"])
def small(request):
    return tiny(request.param)


@torch.no_grad()
def test_statistics_inside_a_trace_are_those_without_a_door(small):
    ids = some_ids(rows=2)
    plain = small.hf(ids).logits
    wanted_logits, wanted = small.run_with_stats(ids, stats=STATS)
    with small.recording(STATS) as recording, small.nnsight.trace(ids):
        logits = small.nnsight.output.logits.save()
    assert_same_statistics(recording.stats(), wanted)
    assert torch.equal(logits, wanted_logits)
    assert torch.equal(small.hf(ids).logits, plain)


@torch.no_grad()
def test_an_intervention_reaches_a_trace_and_ends_with_its_context(small):
    ids = some_ids()
    with small.intervene(probe.PruneHeads([(1, 2)])):
        wanted = small.hf(ids).logits
        with small.nnsight.trace(ids):
            pruned = small.nnsight.output.logits.save()
    with small.nnsight.trace(ids):
        after = small.nnsight.output.logits.save()
    assert torch.equal(pruned, wanted)
    assert torch.equal(after, small.hf(ids).logits)
    assert (after - pruned).abs().max() > 1e-2


@torch.no_grad()
def test_a_traced_patch_of_z_equals_pruning_exactly(llama):
    ids = llama.tokens(TEXT).ids[None]
    plain = llama.hf(ids).logits
    width, heads = llama.head_dim, [probe.Head(3, 2), probe.Head(18, 6)]
    traced = llama.nnsight
    with llama.intervene(probe.PruneHeads(heads)):
        ours = llama.hf(ids).logits
    with llama.intervene(), traced.trace(ids):
        for head in heads:
            z = traced.model.layers[head.layer].self_attn.o_proj.input
            z[..., head.head * width : (head.head + 1) * width] = 0
        patched = traced.output.logits.save()
    assert torch.equal(patched, ours)
    assert (ours - plain).abs().max() > 0.1
    assert torch.equal(llama.hf(ids).logits, plain)


@torch.no_grad()
def test_generation_under_an_intervention_with_statistics(small):
    ids = some_ids(tokens=7)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with small.intervene(probe.PruneHeads([(0, 1)])):
        wanted = small.generate(ids, max_new_tokens=4, eos_token_id=None, stats=STATS)
        with small.recording(STATS) as recording, small.nnsight.generate(ids, **options) as tracer:
            generated = tracer.result.save()
    assert torch.equal(generated[0, 7:], wanted.ids)
    assert_same_statistics(recording.stats(), wanted.stats)


def test_texts_become_the_models_ids(llama):
    with llama.nnsight.trace(TEXT):
        ids = llama.nnsight.inputs[1]["input_ids"].save()
    assert torch.equal(ids[0], llama.tokens(TEXT).ids)
    assert llama.nnsight.tokenizer is not llama.tokenizer


@torch.no_grad()
def test_an_nnsight_model_that_is_there_already_becomes_the_door():
    from nnsight import LanguageModel
    from nnsight.modeling.transformers import TransformersModel

    ids = some_ids()
    hf = build("llama")
    given = TransformersModel(hf, tokenizer=tiny_tokenizer(), task="text-generation")
    model = probe.wrap(given)
    assert model.nnsight is given and model.hf is hf and model.tokenizer is given.tokenizer
    with model.recording(STATS) as recording, given.trace(ids):
        logits = given.output.logits.save()
    wanted_logits, wanted = model.run_with_stats(ids, stats=STATS)
    assert torch.equal(logits, wanted_logits)
    assert_same_statistics(recording.stats(), wanted)
    assert issubclass(LanguageModel, TransformersModel)


def test_an_nnsight_model_without_weights_is_refused(tiny_checkpoint):
    from nnsight.modeling.transformers import TransformersModel

    options = {"task": "text-generation", "tokenizer": str(tiny_checkpoint)}
    lazy = TransformersModel(str(tiny_checkpoint), **options)
    with pytest.raises(probe.UsageError, match="has no weights yet: load it first"):
        probe.wrap(lazy)
    loaded = TransformersModel(str(tiny_checkpoint), **options, dispatch=True)
    assert probe.wrap(loaded).nnsight is loaded
