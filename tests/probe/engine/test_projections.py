"""The maps of attention modules are their weights; where a module is not linear, the errors say so."""

from __future__ import annotations

import pytest
import torch

from probe.engine.projections import Projections, visit_projections
from probe.engine.residual import ResidualStream
from probe.engine.seam import check_seam
from tests.probe.architectures import build


def measured(hf) -> list[Projections]:
    found: list[Projections] = []
    seam = check_seam(hf, torch.arange(3, 9)[None], 2)
    visit_projections(hf, seam, ResidualStream(hf, seam.modules), found.append)
    return found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "olmo2", "mistral", "phi"])
def test_the_maps_are_the_weights(name):
    hf = build(name)
    found = measured(hf)
    assert [each.layer for each in found] == [0, 1]
    for each, layer in zip(found, hf.model.layers, strict=True):
        attention = layer.self_attn
        output = getattr(attention, "o_proj", None) or attention.dense
        torch.testing.assert_close(each.value.transpose(0, 1).flatten(1), attention.v_proj.weight.T, rtol=0, atol=1e-6)
        torch.testing.assert_close(each.output.flatten(0, 1), output.weight.T, rtol=0, atol=1e-6)
        bias = torch.zeros(48) if output.bias is None else output.bias
        torch.testing.assert_close(each.bias, bias, rtol=0, atol=1e-6)
        assert max(each.value_error, each.output_error, each.norm_error) < 1e-5
        assert each.norm is (layer.post_attention_layernorm if name in ("gemma2", "olmo2") else None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


@torch.no_grad()
def test_the_biases_are_left_out_of_the_maps_and_kept_beside_them():
    hf = build("qwen2")
    layer = hf.model.layers[1].self_attn
    layer.v_proj.bias.normal_()
    layer.o_proj.bias = torch.nn.Parameter(torch.randn(48))
    found = measured(hf)[1]
    torch.testing.assert_close(found.value.transpose(0, 1).flatten(1), layer.v_proj.weight.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.output.flatten(0, 1), layer.o_proj.weight.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bias, layer.o_proj.bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("part", "wrong"), [("v_proj", "value_error"), ("o_proj", "output_error")])
def test_a_module_that_is_not_linear_has_an_error(part, wrong):
    hf = build("llama")
    getattr(hf.model.layers[1].self_attn, part).register_forward_hook(lambda module, args, output: output.tanh())
    fine, bent = measured(hf)
    assert getattr(fine, wrong) < 1e-5 and getattr(bent, wrong) > 0.1
    assert getattr(bent, {"value_error": "output_error", "output_error": "value_error"}[wrong]) < 1e-5


def test_a_norm_behind_attention_that_does_something_else_has_an_error():
    hf = build("gemma2")
    hf.model.layers[0].post_attention_layernorm.register_forward_hook(lambda module, args, output: 1.5 * output)
    bent, fine = measured(hf)
    assert bent.norm_error > 0.1 and bent.output_error < 1e-5 and fine.norm_error < 1e-5


def test_maps_of_half_precision_are_float32():
    found = measured(build("llama").to(torch.bfloat16))[0]
    assert found.value.dtype == found.output.dtype == torch.float32 and found.output_error < 0.1
