"""Heads with a fixed pattern on repeated random tokens: induction, duplicate-token and previous-token heads.

A prompt is (what the tokenizer puts in front, such as BOS) + r + r, where r holds `length` = n different tokens drawn
at random. Nothing in it can be known from language, so what a head attends to, it found by position or repetition:

    induction        mean over the queries t of the second copy of p[t, t - n + 1]: what followed this token before
    duplicate token  mean over the queries t of the second copy of p[t, t - n]:     this token itself, before
    previous token   mean over the queries t >= 1 of p[t, t - 1], in both copies

A perfect head scores 1 (Olsson et al. 2022 for the first). TransformerLens' detector averages over all rows, the first
copy's too, where there is nothing to induce: its perfect induction head scores about 0.5. No attention map is made:
each mean is the column mass that a head receives in a band one diagonal wide.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean
from probe.errors import ProbeError, UsageError
from probe.kernels.contract import Band, Request
from probe.saving.manifest import Recorder
from probe.saving.results import Result
from probe.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from probe.figures import Plot
    from probe.models import Model

PATTERNS = ("induction", "previous_token", "duplicate_token")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PatternHeads(Result):
    """Mean weights per sequence, 0..1: induction, previous_token, duplicate_token are [sequences, layers, heads].

    ids: [sequences, tokens], the prompts. length: tokens in one copy.
    """

    induction: Tensor
    previous_token: Tensor
    duplicate_token: Tensor
    ids: Tensor
    length: int
    n_kv_heads: int

    def score(self, pattern: str) -> Tensor:
        """[layers, heads]: mean over the sequences."""
        return self.per_sample(pattern).mean(0)

    def per_sample(self, pattern: str) -> Tensor:
        """[sequences, layers, heads]; `pattern` is one of PATTERNS."""
        if pattern not in PATTERNS:
            raise UsageError(f"expected a pattern among {', '.join(PATTERNS)}, got {pattern!r}")
        return getattr(self, pattern)

    def to_df(self) -> pd.DataFrame:
        """One row per head, best induction head first: layer, head, kv_group, each pattern's score, _low and _high."""
        columns: dict[str, Tensor] = {}
        for pattern in PATTERNS:
            low, high = bootstrap_mean(self.per_sample(pattern), seed=self.manifest.seed)
            columns |= {pattern: self.score(pattern), f"{pattern}_low": low, f"{pattern}_high": high}
        return head_table(columns, n_kv_heads=self.n_kv_heads)

    def figures(self) -> dict[str, Plot]:
        from probe.figures.heads import map_figure

        maps = {pattern: self.score(pattern) for pattern in PATTERNS}
        headline = f"Pattern heads of {self.manifest.name} on repeated random tokens"
        return {"patterns": map_figure(maps, headline=headline)}


def band_means(received: Tensor, keys: range) -> Tensor:
    """Mean over `keys` of a one-diagonal band: [layers, batch, heads, keys] -> [batch, layers, heads].

    `received` of the band lo = hi = lag holds p[j + lag, j] at key j. Raises ValueError where the band has no weight
    for a key of the range.
    """
    chosen = received[..., keys.start : keys.stop]
    if chosen.shape[-1] != len(keys) or chosen.isnan().any():
        raise ValueError(f"keys must lie within the band, got {keys} of {received.shape[-1]} keys")
    return chosen.mean(-1).transpose(0, 1)


def bands(start: int, length: int) -> dict[str, tuple[Band, range]]:
    """For each pattern the band of pairs, and the keys, for a prompt of `start` tokens in front and two copies."""
    second, end = start + length, start + 2 * length
    return {
        "induction": (Band(start=second, lo=length - 1, hi=length - 1), range(start + 1, second + 1)),
        "previous_token": (Band(start=1, lo=1, hi=1), range(0, end - 1)),
        "duplicate_token": (Band(start=second, lo=length, hi=length), range(start, second)),
    }


def repeated_tokens(
    tokenizer: PreTrainedTokenizerBase, front: Tensor, *, sequences: int, length: int, seed: int
) -> Tensor:
    """Ids [sequences, len(front) + 2 * length]: `front`, then `length` different ordinary tokens, twice over."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(sequences):
        order = torch.randperm(len(tokenizer), generator=generator).tolist()
        copy = _ordinary(tokenizer, order, length)
        rows.append(torch.cat([front, copy, copy]))
    return torch.stack(rows)


@torch.no_grad()
def run(model: Model, *, sequences: int = 8, length: int = 64, seed: int = 0) -> PatternHeads:
    """Pattern scores of every head, from one batch of `sequences` prompts that hold two copies of `length` tokens."""
    if sequences < 1 or length < 2:
        raise UsageError(f"expected at least 1 sequence of 2 tokens, got sequences={sequences}, length={length}")
    recorder = Recorder(model, analysis="pattern_heads", options={"sequences": sequences, "length": length}, seed=seed)
    tokens = model.tokens("a")
    front = tokens.ids[: len(tokens.prefix)]
    ids = repeated_tokens(model.tokenizer, front, sequences=sequences, length=length, seed=seed)
    wanted = bands(len(front), length)
    with ExitStack() as stack:
        recordings = {
            pattern: stack.enter_context(model.recording(Request(received=band)))
            for pattern, (band, _) in wanted.items()
        }
        model.prefill(ids)
    scores = {}
    for pattern, (_, keys) in wanted.items():
        received = recordings[pattern].stats().received
        assert received is not None
        scores[pattern] = band_means(received, keys)
    return PatternHeads(
        manifest=recorder.manifest(prompts=[Tokens(text="", ids=row, offsets=()) for row in ids], bos=tokens.bos),
        ids=ids,
        length=length,
        n_kv_heads=model.n_kv_heads,
        **scores,
    )


def _ordinary(tokenizer: PreTrainedTokenizerBase, candidates: list[int], count: int) -> Tensor:
    """The first `count` candidates that stand for text: no special, added or unused token, no part of a character."""
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
