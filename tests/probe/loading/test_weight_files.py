"""Which files hold the weights: what is taken, what is refused, and what is missing."""

from __future__ import annotations

import pytest

from probe.errors import ProbeError
from probe.loading.weight_files import folder_weights, weight_names


def test_one_file_goes_before_shards_as_in_transformers():
    shards = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    assert weight_names("x", {*shards, "model.safetensors.index.json"}) == sorted(shards)
    assert weight_names("x", {*shards, "model.safetensors"}) == ["model.safetensors"]
    assert weight_names("x", {"model.safetensors", "consolidated.safetensors"}) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"config.json", "pytorch_model.bin"}, r"only pickled weights \(pytorch_model.bin\), which can run any code"),
        ({"config.json", "model.pt", "training_args.bin"}, r"only pickled weights \(model.pt\)"),
        ({"q4.gguf", "pytorch_model.bin"}, "holds GGUF files: give the path of one of them, such as q4.gguf"),
        ({"config.json", "training_args.bin"}, "has no weights: a checkpoint has model.safetensors"),
        ({"config.json", "adapter_model.safetensors"}, "has no weights: a checkpoint has model.safetensors"),
    ],
)
def test_names_that_hold_no_safe_weights(names, message):
    with pytest.raises(ProbeError, match=message):
        weight_names("x", names)


def test_a_missing_shard_is_named(checkpoint):
    lost = sorted(checkpoint.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ProbeError, match=f"lacks {lost.name}, which model.safetensors.index.json names"):
        folder_weights(checkpoint)


def test_shards_without_or_with_a_damaged_index(checkpoint):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(ProbeError, match=r"index.json is damaged"):
        folder_weights(checkpoint)
    index.unlink()
    with pytest.raises(ProbeError, match=r"lacks model.safetensors.index.json"):
        folder_weights(checkpoint)
