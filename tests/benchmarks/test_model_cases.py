"""The peers give the maps that our statistics are of."""

from functools import partial
from pathlib import Path

import pytest
import torch

from probe import interventions
from probe.benchmarks.model_cases import prompt, work
from probe.benchmarks.plan import ACT, OURS, PEERS, PLAIN, Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """Of a two-layer Llama of random weights."""
    return Settings(suite="model", threads=1, model=str(tiny_llama(tmp_path_factory.mktemp("model"))))


def tiny_llama(folder: Path) -> Path:
    """Writes such a model and a tokenizer for it; the folder."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=128, **sizes, **heads)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(number): number for number in range(40)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
@torch.no_grad()
def maps(settings):
    """The maps of every layer at 20 tokens as each peer gives them, checked."""
    found = {}
    for peer in PEERS:
        each = work(peer, settings, 20)
        result = each.call()
        assert each.check is not None
        each.check(result)
        found[peer.method] = torch.stack([layer[0] for layer in result])
    return found


def test_all_peers_give_the_same_maps(maps):
    assert list(maps) == ["eager", "bridge", "nnsight"] and maps["eager"].shape == (2, 4, 20, 20)
    for each in maps.values():
        torch.testing.assert_close(each, maps["eager"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_our_statistics_are_of_these_maps(maps, settings):
    logits, stats = work(OURS, settings, 20).call()
    weights = maps["eager"]
    torch.testing.assert_close(stats.entropy[:, 0], torch.special.entr(weights).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.top_weight[:, 0, :, :, 0], weights.max(-1).values, atol=1e-5, rtol=1e-5)
    counts = 20 - torch.arange(20)
    torch.testing.assert_close(stats.received[:, 0], weights.sum(2) / counts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, work(PLAIN, settings, 20).call(), atol=1e-4, rtol=1e-4)
    assert logits.shape == (1, 1, 40)


@torch.no_grad()
def test_calibration_is_in_force(settings, monkeypatch):
    """Random weights attend evenly, and only a low bar takes early keys for sinks."""
    monkeypatch.setattr(interventions, "CalibrateSinks", partial(interventions.CalibrateSinks, threshold=1.2))
    calibrated, plain = work(ACT, settings, 120).call(), work(PLAIN, settings, 120).call()
    assert calibrated.shape == plain.shape and 1e-6 < (calibrated - plain).abs().max() < 0.1


def test_what_is_no_map_is_refused(settings):
    check = work(PEERS[0], settings, 20).check
    assert check is not None
    good = [torch.full((1, 4, 20, 20), 1 / 20)] * 2
    check(good)
    for wrong in (good[:1], [good[0], good[0] * 2], [each[:, :, :, :10] for each in good]):
        with pytest.raises(ValueError, match="expected"):
            check(wrong)


def test_the_prompt_is_the_same_for_every_case(settings):
    ids = prompt(settings, 20, 40)
    assert torch.equal(ids, prompt(settings, 20, 40)) and ids.shape == (1, 20) and 5 < len(set(ids[0].tolist()))
