"""Prefill and greedy decoding on a key-value cache that the caller owns, crops and repeats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@torch.no_grad()
def prefill(hf: PreTrainedModel, ids: Tensor, *, cache: DynamicCache | None = None) -> DynamicCache:
    """The cache after reading `ids` [batch, tokens]; continues `cache` in place if given. No logits are computed.

    The cache keeps every position in every layer (sliding-window layers too), so it can be cropped to any length.
    """
    cache = DynamicCache() if cache is None else cache
    if ids.shape[1]:
        body = hf.base_model
        body(input_ids=ids.to(hf.device), past_key_values=cache, use_cache=True)
    return cache


def crop(cache: DynamicCache, length: int) -> DynamicCache:
    """`cache` cut in place to its first `length` positions."""
    surplus = cache.get_seq_length() - length
    if surplus < 0:
        raise ValueError(f"cache holds {cache.get_seq_length()} positions, cannot crop to {length}")
    if surplus:
        cache.crop(-surplus)
    return cache


def repeat(cache: DynamicCache, rows: int, *, start: int = 0, length: int | None = None) -> DynamicCache:
    """A new cache with the rows of a cache `rows` times over; the original stays as it is.

    Layers before `start`, which will not run, keep their rows: they only say how long the cache is. length: how many of
    the first positions to take, all unless said.
    """
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            raise ValueError(f"layer {index} of the cache holds no keys: prefill it before repeating it")
        times = rows if index >= start else 1
        keys, values = (states[:, :, :length].repeat(times, 1, 1, 1) for states in (keys, values))
        copy.update(keys, values, index)
    return copy


@torch.no_grad()
def greedy(
    hf: PreTrainedModel,
    cache: DynamicCache,
    last: Tensor,
    *,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Greedy continuation of every row: cache of the prompt but its last token, `last` [batch, 1] that token.

    A row ends when `stop(ids so far)` is true, its last id included; the run ends when all rows have.
    The cache is extended in place.
    """
    generated: list[list[int]] = [[] for _ in range(last.shape[0])]
    running = set(range(last.shape[0]))
    token = last.to(hf.device)
    for _ in range(max_new_tokens):
        logits = hf(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
        token = logits.argmax(-1, keepdim=True)
        for row, emitted in enumerate(token.squeeze(1).tolist()):
            if row in running:
                generated[row].append(emitted)
                if stop(generated[row]):
                    running.discard(row)
        if not running:
            break
    return generated
