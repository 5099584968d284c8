"""What the tests of both doors use: a tiny tokenizer, tiny models, and statistics that were taken without a door."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import probe
from tests.probe.architectures import VOCAB, build

STATS = ("lse", "entropy", "distance", "top", "received")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a word per id, no padding token, and a BOS token that it does not add."""
    words = {"<u>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<u>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<u>")


def tiny(name: str) -> probe.Model:
    return probe.Model(build(name), tiny_tokenizer())


def some_ids(rows: int = 1, tokens: int = 20) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))


def assert_same_statistics(found: probe.AttentionStats, wanted: probe.AttentionStats) -> None:
    assert found.tensors().keys() == wanted.tensors().keys()
    for name, value in wanted.tensors().items():
        assert value.isfinite().all() or name == "received"
        torch.testing.assert_close(found.tensors()[name], value, rtol=1e-5, atol=1e-5, equal_nan=True)
