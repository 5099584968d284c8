"""Captures against the eager maps of the same model, in memory and from disk."""

from __future__ import annotations

import json

import pytest
import torch

from probe import Capture, Head, ProbeError, UsageError
from probe.engine.attention import engaged
from probe.engine.capture import Capturing
from tests.probe.architectures import VOCAB, build

LENGTH = 21


def take(hf, folder=None, layers=(0, 1)) -> tuple[Capture, torch.Tensor]:
    ids = torch.randint(3, VOCAB - 1, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    observer = Capturing(layers=layers, folder=folder)
    with torch.no_grad(), engaged(hf, observers=(observer,)):
        hf(input_ids=ids, use_cache=False)
    capture = observer.finish(model="tiny", ids=ids[0], strings=[str(i) for i in ids[0].tolist()])
    return capture, ids


def eager_maps(hf, ids):
    former = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        maps = hf(input_ids=ids, output_attentions=True, use_cache=False).attentions
    hf.set_attn_implementation(former)
    return maps


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_tiles_and_pooled_maps_are_the_eager_map(name: str, tmp_path):
    hf = build(name)
    capture, ids = take(hf)
    capture.save(tmp_path / "capture")
    reopened = Capture.open(tmp_path / "capture")
    for layer, maps in enumerate(eager_maps(hf, ids)):
        for head in range(maps.shape[1]):
            p = maps[0, head]
            tile = reopened.tile(Head(layer, head), slice(5, 19), range(2, 11))
            torch.testing.assert_close(tile, p[5:19, 2:11], rtol=1e-5, atol=1e-5)
            pooled = capture.pooled(Head(layer, head), size=6)
            assert pooled.shape == (6, 6)  # tiles of 4 x 4, the last ones ragged
            for row in range(6):
                for col in range(6):
                    block = p[4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
                    assert pooled[row, col] == pytest.approx(float(block.max()), abs=1e-5)


def test_a_capture_streamed_to_disk_equals_one_in_memory(tmp_path):
    hf = build("llama")
    streamed, _ = take(hf, folder=tmp_path)
    memory, _ = take(hf)
    assert list(streamed) == [0, 1] and streamed.folder == tmp_path
    for layer in memory:
        for name in ("query", "key", "lse"):
            assert torch.equal(getattr(streamed[layer], name), getattr(memory[layer], name))


def test_only_the_layers_asked_for(tmp_path):
    capture, _ = take(build("llama"), layers=[1])
    assert list(capture) == [1]
    with pytest.raises(UsageError, match="layer 0 was not captured: choose from 1-1"):
        capture.tile(Head(0, 0), slice(None), slice(None))


def test_mistakes_are_one_line(tmp_path):
    capture, _ = take(build("llama"))
    with pytest.raises(UsageError, match="L0H7 does not exist"):
        capture.tile(Head(0, 7), slice(None), slice(None))
    with pytest.raises(UsageError, match=r"rows must be a contiguous, non-empty range within 0\.\.21"):
        capture.tile(Head(0, 0), range(0, 22), slice(None))
    with pytest.raises(ProbeError, match="holds no capture"):
        Capture.open(tmp_path)
    capture.save(tmp_path)
    (tmp_path / "layer_001.safetensors").write_bytes(b"torn")
    reopened = Capture.open(tmp_path)
    assert torch.equal(reopened[0].lse, capture[0].lse)
    with pytest.raises(ProbeError, match="damaged"):
        reopened[1]
    index = json.loads((tmp_path / "capture.json").read_text())
    (tmp_path / "capture.json").write_text(json.dumps(index | {"schema": 99}))
    with pytest.raises(ProbeError, match="schema 99"):
        Capture.open(tmp_path)
