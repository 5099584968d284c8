"""Heads with a fixed pattern on repeated random tokens: induction, duplicate-token and previous-token heads.

A prompt is (what the tokenizer puts in front, such as BOS) + r + r, where r holds `length` = n different tokens drawn
at random. Language predicts none of them, so a head that attends to the right token found it by its position or by the
repetition:

    induction        mean over the queries t of the second copy of p[t, t - n + 1]: what followed this token before
    duplicate token  mean over the queries t of the second copy of p[t, t - n]:     the earlier occurrence of this token
    previous token   mean over the queries t >= 1 of p[t, t - 1], in both copies

A perfect head scores 1 (Olsson et al. 2022 for the first). TransformerLens' detector averages over all rows, the first
copy's too, where there is nothing to induce: its perfect induction head scores about 0.5. No attention map is made:
each mean is the column mass that a head receives in a band one diagonal wide.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probe.errors import ProbeError, UsageError
from probe.frame.analysis import Measured, Prompt
from probe.kernels.contract import Band, Request
from probe.models import Model

PATTERNS = ("induction", "previous_token", "duplicate_token")
SEQUENCES, LENGTH = 8, 64
"""The number of prompts, and the tokens in each of the two copies that a prompt holds."""


def band_means(received: Tensor, keys: range) -> Tensor:
    """Return the mean over `keys` of a one-diagonal band: [layers, batch, heads, keys] -> [batch, layers, heads].

    `received` of the band lo = hi = lag holds p[j + lag, j] at key j. Raises ValueError where the band has no weight
    for a key of the range.
    """
    chosen = received[..., keys.start : keys.stop]
    if chosen.shape[-1] != len(keys) or chosen.isnan().any():
        raise ValueError(f"keys must lie within the band, got {keys} of {received.shape[-1]} keys")
    return chosen.mean(-1).transpose(0, 1).contiguous()  # so that its mean rounds as that of a saved record


def bands(start: int, length: int) -> dict[str, tuple[Band, range]]:
    """Return each pattern's band of (query, key) pairs and its keys, for `start` tokens in front of the two copies."""
    second, end = start + length, start + 2 * length
    return {
        "induction": (Band(start=second, lo=length - 1, hi=length - 1), range(start + 1, second + 1)),
        "previous_token": (Band(start=1, lo=1, hi=1), range(0, end - 1)),
        "duplicate_token": (Band(start=second, lo=length, hi=length), range(start, second)),
    }


def repeated_tokens(
    tokenizer: PreTrainedTokenizerBase, front: Tensor, *, sequences: int, length: int, seed: int
) -> Tensor:
    """Return ids [sequences, len(front) + 2 * length]: `front`, then `length` different ordinary tokens, twice."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(sequences):
        order = torch.randperm(len(tokenizer), generator=generator).tolist()
        copy = _ordinary(tokenizer, order, length)
        rows.append(torch.cat([front, copy, copy]))
    return torch.stack(rows)


@torch.no_grad()
def measure(model: Model, *, sequences: int = SEQUENCES, length: int = LENGTH, seed: int = 0) -> Measured:
    """Return the scores of every head on each prompt, pattern -> [sequences, layers, heads], 0..1.

    A prompt holds two copies of `length` tokens. Raises UsageError where the model has too few positions.
    """
    if sequences < 1 or length < 2:
        raise UsageError(f"expected at least 1 sequence of 2 tokens, got sequences={sequences}, length={length}")
    tokens = model.tokens("a")
    front = tokens.ids[: len(tokens.prefix)]
    ids = repeated_tokens(model.tokenizer, front, sequences=sequences, length=length, seed=seed)
    scores: dict[str, Any] = {"bos": tokens.bos}
    with ExitStack() as stack:
        recordings = {
            pattern: (stack.enter_context(model.recording(Request(received=band))), keys)
            for pattern, (band, keys) in bands(len(front), length).items()
        }
        model.prefill(ids)
    for pattern, (recording, keys) in recordings.items():
        received = recording.stats().received
        assert received is not None
        scores[pattern] = band_means(received, keys)
    return Measured(scores, [Prompt.of(row) for row in ids])


def _ordinary(tokenizer: PreTrainedTokenizerBase, candidates: list[int], count: int) -> Tensor:
    """Return the first `count` candidates that stand for text: no special or unused token, no half character."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found: list[int] = []
    for candidate in candidates:
        if candidate in special:
            continue
        text = tokenizer.decode([candidate])
        placeholder = len(text) > 2 and text[0] in "<[" and text[-1] in ">]"  # such as <unused12>
        if text and "\ufffd" not in text and not placeholder:
            found.append(candidate)
            if len(found) == count:
                return torch.tensor(found, dtype=torch.int64)
    raise ProbeError(f"the vocabulary has {len(found)} ordinary tokens, fewer than a length of {count}")
