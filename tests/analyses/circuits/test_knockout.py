"""Knock-outs, against hooks on the output projections and means taken by hand."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from probe.analyses.circuits.knockout import Bench
from probe.errors import UsageError
from probe.heads import Head
from probe.patching.pairs import PromptPair, pairs
from tests.probe.every_door import tiny

CLEAN = ["w5 w6 w7 w8 w9", "w11 w12 w6 w7 w9 w8 w13", "w15 w6 w17 w8 w9"]
CORRUPTED = ["w5 w16 w7 w8 w9", "w11 w12 w6 w27 w9 w8 w13", "w35 w6 w17 w18 w9"]
GROUPS = ["a", "a", "a"]
KEPT = [Head(0, 1), Head(1, 2)]
WIDTH = 12


@pytest.fixture(scope="module")
def model():
    found = tiny("llama")
    found.tokenizer.pad_token = "</s>"
    return found


def prompts(model):
    made = zip(CLEAN, CORRUPTED, GROUPS, strict=True)
    return pairs(model, [PromptPair(clean, other, " w20", " w21", group=group) for clean, other, group in made])


def projected(model, ids):
    """Inputs of both output projections, [layers, tokens, heads, 12], of one prompt."""
    seen = []
    with ExitStack() as stack:
        for layer in model.hf.model.layers:
            handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
            stack.callback(handle.remove)
        model.hf(ids[None])
    return torch.stack(seen).view(2, len(ids), 4, WIDTH)


def knocked(model, ids, kept, fill):
    """The logit difference with every other head's columns replaced by `fill` [layers, tokens, heads, 12]."""

    def replace(layer):
        def hook(_, args):
            z = args[0].view(1, -1, 4, WIDTH).clone()
            gone = [head for head in range(4) if Head(layer, head) not in kept]
            z[0, :, gone] = fill[layer][:, gone]
            return (z.flatten(2),)

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(model.hf.model.layers):
            stack.callback(layer.self_attn.o_proj.register_forward_pre_hook(replace(index)).remove)
        logits = model.hf(ids[None]).logits[0, -1]
    return float(logits[20] - logits[21])


@pytest.mark.parametrize("fill", ["corrupted", "mean", "zero"])
@torch.no_grad()
def test_knocked_out_heads_write_what_was_asked(model, fill):
    ids = [model.tokens(text).ids for text in CLEAN]
    others = [projected(model, model.tokens(text).ids) for text in CORRUPTED]
    # prompts 0 and 2 are of one group and length; prompt 1 has a length of its own
    mean = (others[0] + others[2]) / 2
    fills = {"corrupted": others, "mean": [mean, others[1], mean], "zero": [torch.zeros_like(each) for each in others]}
    wanted = [knocked(model, row, KEPT, own) for row, own in zip(ids, fills[fill], strict=True)]
    found = Bench(model, prompts(model), fill=fill, batch=2).score(KEPT)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_all_heads_are_the_model_and_none_under_equal_prompts_too(model):
    made = prompts(model)
    plain = torch.tensor([float(model.logits(text)[0, -1, [20, 21]] @ torch.tensor([1.0, -1.0])) for text in CLEAN])
    torch.testing.assert_close(Bench(model, made).score(model.heads()), plain, rtol=1e-4, atol=1e-5)
    same = pairs(model, [PromptPair(text, text, " w20", " w21") for text in CLEAN])
    torch.testing.assert_close(Bench(model, same).score(()), plain, rtol=1e-4, atol=1e-5)
    assert (Bench(model, made).score(()) - plain).abs().max() > 1e-3


def test_an_unknown_fill_is_refused(model):
    with pytest.raises(UsageError, match="fill must be one of corrupted, mean, zero, got 'median'"):
        Bench(model, prompts(model), fill="median")
