"""How is a prompt read once and continued many times? With a key-value cache that the caller owns, crops and repeats.

`prefill` reads a prompt into a cache, `crop` cuts the cache back to a shared beginning, `repeat` copies it for several
continuations, and `greedy` continues every row with the most likely token, step by step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@torch.no_grad()
def prefill(hf: PreTrainedModel, ids: Tensor, *, cache: DynamicCache | None = None) -> DynamicCache:
    """Return the cache after reading `ids` [batch, tokens]; `cache` is continued in place. No logits are computed.

    The cache keeps every position in every layer (sliding-window layers too), so it can be cropped to any length.
    """
    cache = DynamicCache() if cache is None else cache
    if ids.shape[1]:
        body = hf.base_model
        body(input_ids=ids.to(hf.device), past_key_values=cache, use_cache=True)
    return cache


def crop(cache: DynamicCache, length: int) -> DynamicCache:
    """Cut `cache` in place to its first `length` positions, and return it."""
    surplus = cache.get_seq_length() - length
    if surplus < 0:
        raise ValueError(f"the cache holds {cache.get_seq_length()} positions and cannot be cropped to {length}")
    if surplus:
        cache.crop(-surplus)
    return cache


def repeat(cache: DynamicCache, rows: int, *, start: int = 0, length: int | None = None) -> DynamicCache:
    """Return a new cache that holds the rows of `cache` `rows` times; `cache` itself stays unchanged.

    start: the first layer that will run. Earlier layers keep their rows, because they only tell the length of the
    cache. length: number of first positions to take; None takes all.
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
    """Return the ids of every row's greedy continuation.

    cache: holds the prompt without its last token, and is extended in place. last: [batch, 1], that token.
    A row ends when stop(its ids so far) is true, and keeps its last id; the run ends when all rows have ended.
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
