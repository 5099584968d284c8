"""The residual stream of tiny models: what is read adds up, what is set is read, and hooks are gone afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from probe import ProbeError, UsageError
from probe.engine.residual import SPLIT, WHOLE, ResidualStream
from probe.engine.seam import check_seam
from tests.probe.architectures import BUILDERS, build

IDS = torch.arange(3, 14)[None]


def tiny(name: str):
    hf = build(name)
    return SimpleNamespace(hf=hf, seam=check_seam(hf, IDS, 2))


@torch.no_grad()
def watch(model, stream: ResidualStream) -> dict[tuple[int, str], torch.Tensor]:
    seen = {}
    with stream.watched(lambda layer, block, states: seen.update({(layer, block): states.clone()})):
        model.hf(input_ids=IDS, use_cache=False)
    return seen


@pytest.mark.parametrize("name", BUILDERS)
def test_the_stream_is_the_hidden_states_and_splits_into_two_writers(name):
    model = tiny(name)
    stream = ResidualStream(model.hf, model.seam.modules)
    assert stream.blocks == SPLIT, name
    seen = watch(model, stream)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    assert list(seen) == stream.places == [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")]
    with torch.no_grad():
        states = model.hf(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen[0, "mlp"], states[1])
    between = seen[1, "attention"] - seen[0, "mlp"]
    assert between.norm() > 1e-3 and (seen[1, "mlp"] - seen[1, "attention"]).norm() > 1e-3


def test_the_first_writer_is_attention():
    model = tiny("llama")
    stream = ResidualStream(model.hf, model.seam.modules)
    before = watch(model, stream)
    with torch.no_grad():
        for layer in model.hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
    after = watch(model, stream)
    torch.testing.assert_close(after[0, "attention"], before[0, "attention"])
    torch.testing.assert_close(after[0, "mlp"], after[0, "attention"])
    assert (before[0, "mlp"] - before[0, "attention"]).norm() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "gpt_neox"])
def test_the_writers_are_found_in_half_precision_too(name, dtype):
    model = tiny(name)
    wanted = [ResidualStream(model.hf, model.seam.modules).writers(layer) for layer in range(2)]
    model.hf.to(dtype)
    assert [ResidualStream(model.hf, model.seam.modules).writers(layer) for layer in range(2)] == wanted


def test_a_layer_that_no_two_writers_explain_is_read_whole():
    model = tiny("llama")
    for layer in model.hf.model.layers:
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    stream = ResidualStream(model.hf, model.seam.modules)
    assert stream.blocks == WHOLE and stream.places == [(0, "layer"), (1, "layer")]
    assert list(watch(model, stream)) == stream.places


def test_what_is_set_is_what_the_next_layer_reads():
    model = tiny("llama")
    stream = ResidualStream(model.hf, model.seam.modules)
    before = watch(model, stream)
    with stream.setting(0, 2, [5, 7], torch.tensor([3.0, -4.0])):
        seen = {}
        model.hf.model.layers[1].register_forward_pre_hook(lambda module, args: seen.update(states=args[0].clone()))
        watch(model, stream)
    changed = (seen["states"] != before[0, "mlp"])[0].nonzero().tolist()
    assert changed == [[2, 5], [2, 7]] and seen["states"][0, 2, [5, 7]].tolist() == [3.0, -4.0]
    torch.testing.assert_close(watch(model, stream)[1, "mlp"], before[1, "mlp"])


def test_what_is_set_leaves_the_layers_own_output_and_its_form_alone():
    model = tiny("llama")
    stream, layer = ResidualStream(model.hf, model.seam.modules), model.hf.model.layers[0]
    kept = {}
    layer.register_forward_hook(lambda module, args, output: kept.update(own=output) or (output, "cache"))
    with stream.setting(0, 2, [5], 3.0):

        def unpack(module, args, output):
            states, kept["beside"] = output
            return states

        layer.register_forward_hook(unpack)
        watched = watch(model, stream)
    assert kept["beside"] == "cache" and watched[0, "mlp"][0, 2, 5] == 3.0 != kept["own"][0, 2, 5]


def test_the_outermost_module_list_holds_the_layers():
    model = tiny("llama")
    for layer in model.hf.model.layers:
        layer.attentions = torch.nn.ModuleList([layer.self_attn])
    assert ResidualStream(model.hf, model.seam.modules).layers == list(model.hf.model.layers)


def test_mistakes_are_one_line():
    model = tiny("llama")
    stream = ResidualStream(model.hf, model.seam.modules)
    with pytest.raises(UsageError, match=r"layer must be within 0\.\.1, got 2"), stream.setting(2, 0, [0], 0.0):
        pass
    model.hf.model.layers = torch.nn.Sequential(*model.hf.model.layers)
    with pytest.raises(ProbeError, match="LlamaForCausalLM does not keep its layers in a module list"):
        ResidualStream(model.hf, model.seam.modules)
