"""What heads write adds up to what their layer's attention wrote, biases and norms behind attention included."""

from __future__ import annotations

import pytest
import torch

from probe import ProbeError
from probe.edges.sides import side
from probe.edges.wiring import Wiring
from tests.probe.edges.wired import NAMES, some_pairs, wired
from tests.probe.every_door import tiny


@pytest.mark.parametrize("name", [*NAMES, "gpt_neox", "olmo2", "gpt_oss"])
def test_writes_and_bias_add_up_to_what_attention_wrote(name):
    wiring, pairs = wired(name), some_pairs()
    clean = side(wiring, pairs.clean, pairs.padding)
    corrupted = side(wiring, pairs.corrupted, pairs.padding)
    for layer, maps in enumerate(wiring.writes):
        assert (maps.norm is not None) == (name in ("gemma2", "olmo2"))
        for run in (clean, corrupted):
            torch.testing.assert_close(maps.behind(maps.sum(run.z[layer])), run.attention[layer], rtol=1e-4, atol=2e-5)
        assert (corrupted.attention[layer] - clean.attention[layer]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_head_whose_projection_is_zero_writes_nothing_and_the_others_all(name):
    model = tiny(name)
    width = model.seam.value_dim
    with torch.no_grad():
        model.hf.model.layers[1].self_attn.o_proj.weight[:, width : 2 * width] = 0
    wiring, pairs = Wiring(model), some_pairs()
    clean = side(wiring, pairs.clean, pairs.padding)
    writes = wiring.writes[1].of(clean.z[1])
    assert bool((writes[:, 1] == 0).all()) and bool((writes[:, [0, 2, 3]].abs().amax((2, 3)) > 0.05).all())


def test_small_changes_move_the_stream_through_the_norm_by_its_slope():
    wiring, pairs = wired("gemma2"), some_pairs()
    maps = wiring.writes[0]
    clean = side(wiring, pairs.clean, pairs.padding)
    plain, change = maps.sum(clean.z[0]), maps.of(clean.z[0].roll(1, 0))
    moved, step = maps.moved(plain, change), 1e-3
    for head in range(4):
        sides = [maps.behind(plain + sign * step * change[:, head]) for sign in (1, -1)]
        slope = (sides[0] - sides[1]) / (2 * step)
        assert slope[:, 2:].abs().max() > 0.1  # before that is padding, whose heads write 0, where the norm has a kink
        torch.testing.assert_close(moved[:, head, 2:], slope[:, 2:], rtol=5e-3, atol=2e-3)


def test_parallel_layers_are_found():
    assert wired("gpt_neox").graph.parallel == (True, True)
    assert wired("llama").graph.parallel == wired("gemma2").graph.parallel == (False, False)


def test_attention_that_does_not_write_linearly_in_z_has_no_edges():
    model = tiny("llama")
    model.hf.model.layers[1].self_attn.o_proj.register_forward_hook(lambda module, args, output: output.tanh())
    with pytest.raises(ProbeError, match=r"what attention writes in layer 1 is off by .* from a linear map"):
        _ = Wiring(model).writes


def test_layers_that_are_no_sum_have_no_edges():
    model = tiny("llama")
    for layer in model.hf.model.layers:
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ProbeError, match="no sum of attention and MLP"):
        _ = Wiring(model).graph
