"""The TransformerLens door: the engine under a bridge, its hooks, and what happens beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import probe
from probe.doors.lens import through_engine
from tests.probe.architectures import WINDOW, build
from tests.probe.every_door import STATS, assert_same_statistics, some_ids, tiny, tiny_tokenizer

ROOT = Path(__file__).parents[3]
TINY = ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3", "phi3", "opt", "gpt_oss"]
TEXT = "The cat sat on the mat. The cat sat"


def seen_patterns(layers):
    """Hooks on the patterns of these layers, and the patterns that they will have seen."""
    seen = {}

    def keep(pattern, hook):
        seen[hook.layer()] = pattern.clone()

    return [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in layers], seen


@pytest.fixture(scope="module", params=TINY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def small(name):
    return tiny(name)


@pytest.fixture(scope="module")
def stock(name):
    """TransformerLens's bridge as it comes, on a second model of the same weights."""
    hf = build(name)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


@torch.no_grad()
def test_logits_equal_the_bridges_own_and_the_statistics_those_without_a_door(stock, small):
    ids = some_ids(rows=2)
    plain = small.hf(ids).logits
    wanted = small.run_with_stats(ids, stats=STATS)[1]
    with small.recording(STATS) as recording:
        logits = small.lens(ids)
    torch.testing.assert_close(logits, stock(ids), rtol=1e-4, atol=1e-4)
    assert_same_statistics(recording.stats(), wanted)
    assert torch.equal(small.hf(ids).logits, plain)


@torch.no_grad()
def test_an_intervention_and_an_edited_hook_z_change_the_logits_alike(small):
    ids = some_ids()
    head = probe.Head(1, 2)

    def zero(z, hook):
        z[:, :, head.head] = 0
        return z

    plain = small.lens(ids)
    with small.intervene(probe.PruneHeads([head])):
        ours = small.lens(ids)
        direct = small.hf(ids).logits
    hooked = small.lens.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_z", zero)])
    torch.testing.assert_close(ours, direct, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hooked, ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(small.lens(ids), plain, rtol=0, atol=0)


@pytest.mark.parametrize("point", ["hook_q", "hook_k", "hook_v", "hook_z", "hook_in", "hook_out"])
@torch.no_grad()
def test_edits_at_standard_hooks_do_what_they_do_in_the_bridges_own_attention(stock, small, point):
    ids = some_ids()

    def edit(states, hook):
        return states * 2 + 0.5  # a norm of queries or keys would undo the factor alone

    hooks = [(f"blocks.0.attn.{point}", edit)]
    ours = small.lens.run_with_hooks(ids, fwd_hooks=hooks)
    torch.testing.assert_close(ours, stock.run_with_hooks(ids, fwd_hooks=hooks), rtol=1e-4, atol=1e-4)
    assert (ours - small.lens(ids)).abs().max() > 1e-3


@torch.no_grad()
def test_a_hooked_pattern_runs_the_bridges_own_path_and_agrees(small):
    ids = some_ids()
    hooks, seen = seen_patterns([1])
    hooked = small.lens.run_with_hooks(ids, fwd_hooks=hooks)
    small.hf.set_attn_implementation("eager")
    eager = small.hf(ids, output_attentions=True)
    small.hf.set_attn_implementation("sdpa" if small.hf._supports_sdpa else "eager")
    assert seen.keys() == {1}
    torch.testing.assert_close(seen[1], eager.attentions[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hooked, eager.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(small.lens(ids), hooked, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_the_own_path_cannot_serve_is_refused_layer_by_layer(small):
    ids = some_ids()
    hooks, seen = seen_patterns([1])
    with (
        pytest.raises(probe.ProbeError, match="layer 1 cannot be recorded while hook_pattern is in use there"),
        small.recording(("entropy",)),
    ):
        small.lens.run_with_hooks(ids, fwd_hooks=hooks)
    with (
        pytest.raises(probe.ProbeError, match="layer 1 cannot be changed by an intervention while hook_pattern"),
        small.intervene(probe.PruneHeads([(1, 0)])),
    ):
        small.lens.run_with_hooks(ids, fwd_hooks=hooks)
    assert not seen
    with small.intervene(probe.PruneHeads([(0, 1)])), small.recording(("entropy",), layers=[0]) as recording:
        mixed = small.lens.run_with_hooks(ids, fwd_hooks=hooks)
    with small.intervene(probe.PruneHeads([(0, 1)])):
        logits, stats = small.run_with_stats(ids, stats=("entropy",), layers=[0])
    torch.testing.assert_close(mixed, logits, rtol=1e-4, atol=1e-4)
    assert_same_statistics(recording.stats(), stats)
    assert seen.keys() == {1}


@torch.no_grad()
def test_left_padding_and_a_window_under_both_paths():
    model = tiny("gemma2")
    ids = some_ids(rows=2)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    wanted = model.hf(ids, attention_mask=mask, position_ids=position_ids).logits
    hooks, seen = seen_patterns([0, 1])
    options = {"attention_mask": mask, "position_ids": position_ids}
    ours = model.lens(ids, **options)
    with model.lens.hooks(fwd_hooks=hooks):
        own = model.lens(ids, **options)
    real = mask.bool()
    torch.testing.assert_close(ours[real], wanted[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own[real], wanted[real], rtol=1e-4, atol=1e-4)
    assert (seen[0][1, :, 6:, :6] == 0).all()
    assert (seen[0][0, :, 19, :12] == 0).all() and (seen[1][0, :, 19, :12] > 0).any()


@torch.no_grad()
def test_generation_under_an_intervention_is_the_models_own(small):
    ids = some_ids(tokens=7)
    options = {"max_new_tokens": 4, "do_sample": False}
    hooks, seen = seen_patterns([0, 1])
    with small.intervene(probe.PruneHeads([(0, 1)])):
        wanted = small.generate(ids, max_new_tokens=4, eos_token_id=None).ids
        ours = small.lens.generate(ids, **options, stop_at_eos=False, verbose=False)
    assert torch.equal(ours[0, 7:], wanted)
    plain = small.lens.generate(ids, **options, stop_at_eos=False, verbose=False)
    with small.lens.hooks(fwd_hooks=hooks):
        own = small.lens.generate(ids, **options, stop_at_eos=False, verbose=False)
    assert torch.equal(own, plain)
    assert seen[1].shape[-2:] == (1, 10)
    if small.hf.config.model_type == "gemma2":  # a window in layer 0
        assert seen[0].shape[-2:] == (1, WINDOW)


@torch.no_grad()
def test_keys_and_values_are_kept_where_they_are_asked_for_only(small):
    lens, ids, kept = small.lens, some_ids(), []

    def see(module, args, kwargs):
        kept.append(kwargs.get("past_key_values") is not None or kwargs.get("layer_past") is not None)

    attention = next(block.attn for block in lens.blocks if hasattr(block, "attn"))
    handle = attention.register_forward_pre_hook(see, with_kwargs=True)
    try:
        logits = lens(ids)
        lens.run_with_cache(ids, names_filter="blocks.0.attn.hook_z")
        assert kept == [False, False]
        first, cache = lens(ids[:, :-1], return_type="logits_and_cache")
        last, _ = lens(ids[:, -1:], "logits_and_cache", past_key_values=cache)
        assert kept[2:] == [True, True]
        lens(ids, use_cache=True)
        assert kept[4:] == [True]
    finally:
        handle.remove()
    torch.testing.assert_close(torch.cat([first, last], 1), logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_per_head_results_sum_to_what_the_attention_writes(small):
    if not small.lens.blocks[0].attn.supports_attn_result:
        pytest.skip("TransformerLens gives no per-head results for this architecture")
    ids = some_ids()
    names = ("blocks.0.attn.hook_result", "blocks.0.attn.hook_out")
    plain = small.lens(ids)
    small.lens.set_use_attn_result(True)
    try:
        with small.recording(("entropy",)) as recording:  # the engine's path, which would refuse otherwise
            logits, cache = small.lens.run_with_cache(ids, names_filter=lambda name: name in names)
        silenced = small.lens.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z * 0)])
    finally:
        small.lens.set_use_attn_result(False)
    result, written = (cache[name] for name in names)
    bias = small.lens.blocks[0].attn.b_O
    torch.testing.assert_close(result.sum(2) + (0 if bias is None else bias), written, rtol=1e-4, atol=1e-4)
    assert result.shape[2] == small.n_heads and recording.stats().entropy.shape[0] == small.n_layers
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    with small.intervene(probe.PruneHeads([(0, head) for head in range(small.n_heads)])):
        pruned = small.lens(ids)
    torch.testing.assert_close(silenced, pruned, rtol=1e-4, atol=1e-4)


def test_a_lens_leaves_the_models_own_attention_as_it_was(name):
    model = tiny(name)  # TransformerLens makes some architectures eager
    former = model.hf.config._attn_implementation
    assert model.lens is model.lens and model.hf.config._attn_implementation == former


def test_the_weights_are_shared_and_processing_them_for_the_bridge_leaves_the_model_alone():
    model = tiny("llama")
    ids = some_ids()
    own = {parameter.data_ptr() for parameter in model.hf.parameters()}
    assert {parameter.data_ptr() for parameter in model.lens.original_model.parameters()} == own
    assert model.lens.original_model.config is model.hf.config
    with torch.no_grad():
        plain = model.hf(ids).logits
        model.lens.enable_compatibility_mode()
        folded = model.lens(ids)
        assert torch.equal(model.hf(ids).logits, plain)
    torch.testing.assert_close(folded.log_softmax(-1), plain.log_softmax(-1), rtol=1e-3, atol=1e-3)


def test_ids_are_those_of_the_model_and_its_tokenizer_stays_as_it_was(llama):
    tokenizer = llama.tokenizer.padding_side, llama.tokenizer.pad_token
    assert torch.equal(llama.lens.to_tokens(TEXT)[0], llama.tokens(TEXT).ids)
    assert (llama.tokenizer.padding_side, llama.tokenizer.pad_token) == tokenizer
    model = tiny("llama")
    assert torch.equal(model.lens.to_tokens("w5 w6")[0], torch.tensor([5, 6]))
    assert model.tokenizer.pad_token is None


@torch.no_grad()
def test_the_packaged_model(llama):
    ids = llama.tokens(TEXT).ids[None]
    plain = llama.hf(ids).logits
    head = probe.Head(18, 6)
    hooks, seen = seen_patterns(range(llama.n_layers))
    own = llama.lens.run_with_hooks(ids, fwd_hooks=hooks)
    with llama.recording(STATS) as recording:
        logits, cache = llama.lens.run_with_cache(
            ids, names_filter=lambda name: name.endswith(("hook_z", "resid_post"))
        )
    wanted = llama.run_with_stats(ids, stats=STATS)[1]
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    assert_same_statistics(recording.stats(), wanted)
    assert len(seen) == llama.n_layers and any(name.endswith("hook_z") for name in cache)
    p = seen[head.layer][0, head.head]
    torch.testing.assert_close(
        -torch.xlogy(p, p).sum(-1), wanted.entropy[head.layer, 0, head.head], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(llama.hf(ids).logits, plain)


MEMORY = """
import sys, torch, probe
torch.set_grad_enabled(False)
model = probe.load("llama")
ids = torch.randint(0, model.vocab, (1, 2048), generator=torch.Generator().manual_seed(0))
with model.recording(("entropy", "top")) as recording:
    logits, cache = model.lens.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_z"))
assert recording.stats().entropy.shape == (30, 1, 9, 2048) and len(cache) == 30
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_caching_2048_tokens_without_patterns_stays_below_two_gigabytes():
    """z and the statistics of every layer; the patterns alone would take 30 x 9 x 2,048 x 2,048 x 4 bytes = 4.5 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2_000_000


@torch.no_grad()
def test_a_bridge_that_is_there_already_becomes_the_door():
    hf = build("gpt2")
    ids = some_ids()
    plain = hf(ids).logits
    wanted = tiny("gpt2").run_with_stats(ids, stats=STATS)[1]
    bridge = build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config)
    with pytest.raises(probe.UsageError, match="the TransformerBridge comes without a tokenizer: pass tokenizer="):
        probe.wrap(bridge)
    model = probe.wrap(bridge, tiny_tokenizer())
    assert model.lens is bridge and probe.wrap(bridge, tiny_tokenizer()).lens is bridge
    logits, stats = model.run_with_stats(ids, stats=STATS)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    assert_same_statistics(stats, wanted)
    with model.recording(STATS) as recording:
        torch.testing.assert_close(bridge(ids), plain, rtol=1e-4, atol=1e-4)
    assert_same_statistics(recording.stats(), wanted)
    hooks, seen = seen_patterns([0, 1])
    torch.testing.assert_close(bridge.run_with_hooks(ids, fwd_hooks=hooks), plain, rtol=1e-4, atol=1e-4)
    assert seen.keys() == {0, 1}


@torch.no_grad()
def test_projections_that_do_not_add_up_to_the_fused_one_stay_with_the_bridge():
    hf = build("gpt2")
    ids = some_ids()
    bridge = build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config)
    query = bridge.blocks[1].attn.q.original_component  # reads a part of the fused projection until now
    query.weight = torch.nn.Parameter(query.weight * 2)
    own = bridge(ids)
    torch.testing.assert_close(through_engine(bridge)(ids), own, rtol=1e-4, atol=1e-4)
    with pytest.raises(probe.ProbeError, match="recorded under TransformerLens: the fused projection of"):
        probe.wrap(bridge, tiny_tokenizer())


def test_a_transformers_model_needs_its_tokenizer_and_nothing_else_is_taken():
    hf = build("llama")
    assert probe.wrap(hf, tiny_tokenizer()).hf is hf
    with pytest.raises(probe.UsageError, match="comes without a tokenizer"):
        probe.wrap(hf)
    with pytest.raises(probe.UsageError, match="give a transformers model, a TransformerLens bridge or an"):
        probe.wrap(torch.nn.Linear(2, 2), tiny_tokenizer())


def test_an_architecture_without_a_bridge_is_refused_by_name():
    class Unknown(type(build("llama"))):
        pass

    hf = build("llama")
    hf.__class__ = Unknown
    model = probe.Model(hf, tiny_tokenizer())
    with pytest.raises(probe.ProbeError, match=r"has no bridge for Unknown: use model\.hf or model\.nnsight"):
        _ = model.lens
    assert hf.config._attn_implementation == "sdpa"
