"""The engine's own behaviour: masks it must recognise, contexts it must restore, interventions it must apply."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from probe import Head, ProbeError, PruneHeads, Request
from probe.engine.attention import engaged, probe_mask
from probe.engine.recording import Recording
from probe.kernels.blocks import visible_pairs
from probe.kernels.contract import Mask
from tests.probe.architectures import VOCAB, WINDOW, build

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def mistral():
    return build("mistral")


def ids(length: int = 16, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randint(3, VOCAB - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


# --- the mask function -----------------------------------------------------------------------------------------------


def visible(mask: Mask, queries: int, keys: int) -> Tensor:
    return visible_pairs(slice(0, queries), slice(0, keys), mask, torch.device("cpu"))


def test_causal_and_window_masks_stay_symbolic():
    padding = torch.ones(2, 12, dtype=torch.bool)
    padding[1, :3] = False
    causal = probe_mask(2, 12, 12, mask_function=causal_mask_function, attention_mask=padding)
    assert causal.causal and causal.window is None and causal.pairs is None
    assert torch.equal(causal.keys, padding)
    window = probe_mask(1, 12, 12, mask_function=sliding_window_causal_mask_function(5), local_size=5)
    assert window == Mask(window=5)
    cached = probe_mask(
        1, 1, 5, q_offset=20, kv_offset=16, mask_function=sliding_window_causal_mask_function(5), local_size=5
    )
    assert cached == Mask(window=5, first_query=20, first_key=16)


def test_chunks_are_not_taken_for_a_window():
    chunked = chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64))
    mask = probe_mask(1, 12, 12, mask_function=chunked, local_size=4)
    expected = torch.tensor([[j <= i and i // 4 == j // 4 for j in range(12)] for i in range(12)])
    assert torch.equal(visible(mask, 12, 12)[0, 0], expected)


def test_an_overlay_is_evaluated():
    def no_third_key(batch, head, query, key):
        return key != 3

    function = and_masks(sliding_window_causal_mask_function(5), no_third_key)
    mask = probe_mask(1, 12, 12, mask_function=function, local_size=5, allow_is_causal_skip=False)
    expected = torch.tensor([[i - 5 < j <= i and j != 3 for j in range(12)] for i in range(12)])
    assert torch.equal(visible(mask, 12, 12)[0, 0], expected)


def test_packed_sequences_do_not_see_one_another(llama):
    """Positions that restart mark packed sequences; each must get the logits it has alone."""
    first, second = ids(7, seed=1), ids(9, seed=2)
    packed = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    recording = Recording(Request(distance=True), layers=range(2))
    with engaged(llama, observers=(recording,)):
        logits = llama(input_ids=packed, position_ids=positions, use_cache=False).logits
    for part, single in ((slice(0, 7), first), (slice(7, 16), second)):
        torch.testing.assert_close(
            logits[:, part], llama(input_ids=single, use_cache=False).logits, rtol=1e-4, atol=1e-4
        )
    assert recording.stats().distance[..., 7].abs().max() == 0  # the second sequence's first token sees itself alone


def test_a_dense_mask_of_the_users_is_honoured(llama):
    prompt = ids(10)
    allowed = torch.ones(10, 10, dtype=torch.bool).tril()
    allowed[6:, 2] = False
    additive = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
    expected = llama(input_ids=prompt, attention_mask=additive, use_cache=False).logits
    recording = Recording(Request(sets=torch.eye(10, dtype=torch.bool)[None, None, 2:3]), layers=range(2))
    for mask in (additive, allowed[None, None]):
        recording = Recording(Request(sets=torch.eye(10, dtype=torch.bool)[None, None, 2:3]), layers=range(2))
        with engaged(llama, observers=(recording,)):
            logits = llama(input_ids=prompt, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        mass = recording.stats().mass
        assert mass[..., 6:, 0].abs().max() == 0 and mass[..., 3:6, 0].min() > 0


def test_a_score_bias_is_refused(llama):
    bias = torch.full((1, 1, 10, 10), 0.5)
    with pytest.raises(ProbeError, match="bias"), engaged(llama):
        llama(input_ids=ids(10), attention_mask=bias, use_cache=False)


def test_a_static_cache_equals_a_dynamic_one(llama):
    """A static cache hands over its whole capacity; the unused tail must stay invisible."""
    prompt = ids(12)
    results = []
    for cache in (DynamicCache(), StaticCache(config=llama.config, max_cache_len=32)):
        recording = Recording(Request(entropy=True, distance=True, top=1), layers=range(2))
        with engaged(llama, observers=(recording,)):
            llama(input_ids=prompt[:, :9], past_key_values=cache, use_cache=True)
            for t in range(9, 12):
                logits = llama(input_ids=prompt[:, t : t + 1], past_key_values=cache, use_cache=True).logits
        results.append((logits, recording.stats()))
    (logits, stats), (static_logits, static) = results
    torch.testing.assert_close(static_logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(static.entropy, stats.entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(static.distance, stats.distance, rtol=1e-4, atol=1e-5)


# --- contexts --------------------------------------------------------------------------------------------------------


def test_the_implementation_is_restored_after_an_error(llama):
    with pytest.raises(RuntimeError, match="inside"), engaged(llama):
        assert llama.config._attn_implementation == "probe"
        raise RuntimeError("inside")
    assert llama.config._attn_implementation == "sdpa"


def test_without_anything_asked_the_logits_are_those_of_sdpa(llama):
    prompt = ids(16)
    expected = llama(input_ids=prompt, use_cache=False).logits
    with engaged(llama):
        assert torch.equal(llama(input_ids=prompt, use_cache=False).logits, expected)


def test_nested_recordings_each_get_what_they_asked_for(llama):
    outer = Recording(Request(entropy=True), layers=[0, 1])
    inner = Recording(Request(top=2), layers=[1])
    with engaged(llama, observers=(outer,)):
        with engaged(llama, observers=(inner,)):
            llama(input_ids=ids(9), use_cache=False)
        assert llama.config._attn_implementation == "probe"
    assert outer.stats().layers == (0, 1) and outer.stats().top_key is None
    assert inner.stats().layers == (1,) and inner.stats().entropy is None
    assert inner.stats().top_key.shape == (1, 1, 4, 9, 2)


def test_two_models_do_not_record_into_one_another(llama, mistral):
    one, two = Recording(Request(lse=True), layers=range(2)), Recording(Request(lse=True), layers=range(2))
    with engaged(llama, observers=(one,)), engaged(mistral, observers=(two,)):
        llama(input_ids=ids(6), use_cache=False)
        mistral(input_ids=ids(11), use_cache=False)
    assert one.stats().lse.shape[-1] == 6 and two.stats().lse.shape[-1] == 11


def test_another_thread_is_not_recorded(llama):
    recording = Recording(Request(lse=True), layers=range(2))
    with engaged(llama, observers=(recording,)):
        thread = threading.Thread(target=lambda: llama(input_ids=ids(6), use_cache=False))
        thread.start()
        thread.join()
        llama(input_ids=ids(8), use_cache=False)
    assert recording.stats().lse.shape[-1] == 8


def test_a_second_prompt_in_one_recording_is_refused(llama):
    recording = Recording(Request(lse=True), layers=range(2))
    with engaged(llama, observers=(recording,)):
        llama(input_ids=ids(6), use_cache=False)
        with pytest.raises(ProbeError, match="one recording for each prompt"):
            llama(input_ids=ids(6), use_cache=False)


def test_a_recording_that_saw_nothing_says_so(llama):
    recording = Recording(Request(lse=True), layers=range(2))
    with pytest.raises(ProbeError, match="no attention call"):
        recording.stats()


def test_attention_dropout_is_refused():
    hf = build("gpt2").train()
    with pytest.raises(ProbeError, match="eval"), engaged(hf):
        hf(input_ids=ids(6), use_cache=False)


# --- interventions ---------------------------------------------------------------------------------------------------


def eager_with_map_edit(hf, prompt: Tensor, layer: int, edit) -> Tensor:
    """Logits of the eager implementation with `edit(p)` applied to one layer's attention map, done by hand."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attention(module, query, key, value, mask, scaling, **_):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        p = (query @ key.transpose(2, 3) * scaling + mask).softmax(-1)
        if module.layer_idx == layer:
            p = edit(p, mask)
        return (p @ value).transpose(1, 2), None

    AttentionInterface.register("edited", attention)
    AttentionMaskInterface.register("edited", eager_mask)
    hf.set_attn_implementation("edited")
    try:
        return hf(input_ids=prompt, use_cache=False).logits
    finally:
        hf.set_attn_implementation("sdpa")


def test_zero_pruning_equals_a_zeroed_map(llama):
    prompt = ids(12)

    def edit(p, mask):
        p = p.clone()
        p[:, [1, 3]] = 0
        return p

    expected = eager_with_map_edit(llama, prompt, 1, edit)
    with engaged(llama, interventions=(PruneHeads([Head(1, 1), (1, 3)]),)):
        logits = llama(input_ids=prompt, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, llama(input_ids=prompt, use_cache=False).logits, atol=1e-2)


def test_uniform_pruning_equals_a_uniform_map_and_shows_in_the_statistics(llama):
    prompt = ids(12)

    def edit(p, mask):
        p, allowed = p.clone(), (mask == 0).double()
        p[:, 2] = (allowed / allowed.sum(-1, keepdim=True))[:, 0].to(p)
        return p

    expected = eager_with_map_edit(llama, prompt, 0, edit)
    recording = Recording(Request(entropy=True), layers=range(2))
    with engaged(llama, observers=(recording,), interventions=(PruneHeads([(0, 2)], fill="uniform"),)):
        logits = llama(input_ids=prompt, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recording.stats().entropy[0, 0, 2], torch.arange(1.0, 13.0).log(), rtol=1e-5, atol=1e-5)


def test_pruning_in_decode_leaves_the_prefill_alone(llama):
    prompt = ids(12)
    prune = PruneHeads([(0, 0), (1, 1)], phase="decode")
    with engaged(llama):
        plain = llama(input_ids=prompt, use_cache=False).logits
    with engaged(llama, interventions=(prune,)):
        assert torch.equal(llama(input_ids=prompt, use_cache=False).logits, plain)
        cache = DynamicCache()
        llama(input_ids=prompt[:, :-1], past_key_values=cache, use_cache=True)
        step = llama(input_ids=prompt[:, -1:], past_key_values=cache, use_cache=True).logits
    assert not torch.allclose(step[:, -1], plain[:, -1], atol=1e-2)


def test_rows_of_a_batch_are_pruned_one_by_one(llama):
    """Each row of a batch under its own pruning equals that prompt run alone under it."""
    prompts = ids(10, batch=3)
    prunings = [((0, 1),), (), ((1, 2), (0, 3))]
    rows = tuple(PruneHeads(heads, rows=[row]) for row, heads in enumerate(prunings))
    with engaged(llama, interventions=rows):
        batched = llama(input_ids=prompts, use_cache=False).logits
    for row, heads in enumerate(prunings):
        with engaged(llama, interventions=(PruneHeads(heads),)):
            alone = llama(input_ids=prompts[row : row + 1], use_cache=False).logits
        torch.testing.assert_close(batched[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_an_intervention_describes_itself_for_the_manifest():
    assert PruneHeads([(18, 6)], fill="uniform", rows=[2]).describe() == {
        "intervention": "PruneHeads",
        "heads": ["L18H6"],
        "fill": "uniform",
        "phase": "all",
        "rows": [2],
        "reference": None,
    }


def test_gradients_flow_through_the_engine(llama):
    """The output is differentiable; the gradient of a logit at the embeddings equals the one under sdpa."""
    embeddings = llama.get_input_embeddings()(ids(WINDOW)).detach()
    grads = []
    for engine in (False, True):
        inputs = embeddings.clone().requires_grad_()
        recording = Recording(Request(entropy=True, top=1), layers=range(2))
        with torch.enable_grad():
            if engine:
                with engaged(llama, observers=(recording,)):
                    logit = llama(inputs_embeds=inputs, use_cache=False).logits[0, -1, 5]
            else:
                logit = llama(inputs_embeds=inputs, use_cache=False).logits[0, -1, 5]
            logit.backward()
        grads.append(inputs.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-4)
    assert not recording.stats().entropy.requires_grad
