"""Hashes of weights: of files where they are known, else of the parameters; large files are read once."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.loading import embedded, hashes
from probe.loading.hashes import files_hash, parameters_hash, weights_hash
from probe.loading.sources import Source, resolve
from tests.probe.architectures import build
from tests.probe.loading.checkpoints import sha256, unshard


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "probe-cache"))


def test_the_hash_of_one_file_is_its_sha256(checkpoint):
    file = unshard(checkpoint)
    assert files_hash(resolve(str(checkpoint))) == sha256(file)


def test_the_hash_of_shards_follows_their_contents_alone(tiny_checkpoint, checkpoint):
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    together = hashlib.sha256("".join(sha256(shard) for shard in shards).encode()).hexdigest()
    assert files_hash(resolve(str(checkpoint))) == together == files_hash(resolve(str(tiny_checkpoint)))
    tensors = load_file(shards[0])
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, shards[0], metadata={"format": "pt"})
    assert files_hash(resolve(str(checkpoint))) != together


def test_the_hash_of_the_embedded_model_is_that_of_its_package():
    installed = embedded.packaged()
    assert installed is not None and files_hash(resolve("llama")) == installed.sha256


def test_large_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_REMEMBER_ABOVE", 4)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF one")
    source = Source(name="a", kind="gguf", model=str(file), path=file)
    read = []

    def counted(path: Path) -> str:
        read.append(path)
        return embedded.sha256_of(path)

    monkeypatch.setattr(hashes, "sha256_of", counted)
    assert files_hash(source) == files_hash(source) == sha256(file) and len(read) == 1
    time.sleep(0.01)
    file.write_bytes(b"GGUF two")  # the same size, another time of change
    assert files_hash(source) == sha256(file) and len(read) == 2
    memory = embedded.cache_folder() / "hashes.json"
    assert list(json.loads(memory.read_text()).values()) == [sha256(file)]  # what no longer exists is forgotten
    memory.write_text("{torn")
    assert files_hash(source) == sha256(file) and len(read) == 3


def test_hashing_without_a_cache_to_write_to(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_REMEMBER_ABOVE", 4)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF one")
    monkeypatch.setenv("PROBE_CACHE", str(file / "inside"))
    assert files_hash(Source(name="a", kind="gguf", model=str(file), path=file)) == sha256(file)


def test_weights_are_hashed_by_value_where_no_file_is_known():
    hf = build("llama")
    before = weights_hash(hf, None)
    assert before == parameters_hash(hf)
    with torch.no_grad():
        weight = hf.model.layers[1].self_attn.q_proj.weight
        old = weight[0, 0].item()
        weight[0, 0] += 1
        changed = weights_hash(hf, None)
        weight[0, 0] = old
    assert changed != before and weights_hash(hf, None) == before
