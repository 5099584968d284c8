from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as reading

from probe.errors import ProbeError
from probe.loading.gguf import general, is_gguf, read_gguf


@pytest.fixture(scope="module")
def tiny(gguf_writer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, gguf_writer(path)


def test_general_keys(tiny):
    assert general(tiny[0]) == {"architecture": "llama", "name": "tiny", "license": "mit"}


def test_general_keys_behind_an_array_and_numbers(tmp_path):
    import gguf

    path = tmp_path / "listed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_languages(["en", "de"])
    writer.add_quantization_version(2)  # a number
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert general(path) == {"architecture": "llama", "license": "apache-2.0"}


def test_what_is_gguf(tiny, tmp_path):
    assert is_gguf(tiny[0])
    (tmp_path / "a").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").touch()
    assert not is_gguf(tmp_path / "a") and not is_gguf(tmp_path / "empty")


def test_the_weights_arrive_as_written(tiny):
    path, tensors = tiny
    model, tokenizer = read_gguf(path)
    state = model.state_dict()
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(state[ours].numpy(), tensors[theirs])
    assert model.lm_head.weight is model.model.embed_tokens.weight  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a the<|end|>").input_ids) == ["a", "Ġthe", "<|end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")


def test_dtype(tiny):
    model, _ = read_gguf(tiny[0], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_architecture_that_transformers_does_not_read(gguf_writer, tmp_path):
    gguf_writer(tmp_path / "odd.gguf", architecture="rwkv7")
    with pytest.raises(ProbeError, match=r"cannot read GGUF files of architecture 'rwkv7' \(odd.gguf\)"):
        read_gguf(tmp_path / "odd.gguf")


@pytest.mark.parametrize("keep", [10, 30, 60, 400, 1500, -4000])
def test_a_file_cut_short(tiny, tmp_path, keep):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny[0].read_bytes()[:keep])
    with pytest.raises(ProbeError, match=r"cut.gguf (is cut short|cannot be read: fetch it again)"):
        read_gguf(path)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(20), struct.pack("<4sIQQ", b"GGUF", 9, 0, 0)], ids=["zip", "version"]
)
def test_another_format(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ProbeError, match=r"x.gguf is no GGUF file of version 2 or 3"):
        general(tmp_path / "x.gguf")


def test_the_bar_of_transformers_stays_off_outside_terminals(tiny, capfd):
    before = reading.tqdm  # pyright: ignore[reportPrivateImportUsage]
    read_gguf(tiny[0])
    assert "de-quantizing" not in capfd.readouterr().err
    assert reading.tqdm is before  # pyright: ignore[reportPrivateImportUsage]
