"""The largest scores of a row, ties to the lower key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# One pass over the scores finds the maximum of each chunk of this many keys; only chunks that can matter are sorted.
CHUNK = 64


def top_columns(s: Tensor, chunks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row, best first, and their columns: [.., cols] -> [.., k].

    chunks: the maxima of each CHUNK columns. The k best lie in the k chunks whose maxima are best, ties to the lower
    chunk: a score outside them has k better ones, one in each.
    """
    if chunks.shape[-1] == 1:
        best = first_largest(s, k)
        return s.gather(-1, best), best
    if k == 1:
        score, chosen = chunks.max(-1, keepdim=True)
        found, first = chosen_chunks(s, chosen)
        return score, first + first_largest(found, 1)
    chosen = first_largest(chunks, min(k, chunks.shape[-1]))
    score, first = chosen_chunks(s, chosen.sort(-1).values)
    best = first_largest(score, k)
    return score.gather(-1, best), first.gather(-1, best // CHUNK) + best % CHUNK


def chosen_chunks(s: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return some chunks of each row side by side, [.., chosen * CHUNK], and their first columns, [.., chosen].

    A chunk that would end outside its row is filled up with -inf, one that would end outside s starts earlier.
    """
    cols = s.shape[-1]
    row = torch.arange(0, s.numel(), cols, device=s.device).view(*s.shape[:-1], 1)
    wanted = chosen * CHUNK
    first = (row + wanted).clamp_(max=s.numel() - CHUNK)
    # copying runs of memory is several times faster than gathering element by element
    runs = s.as_strided((s.numel() - CHUNK + 1, CHUNK), (1, 1), s.storage_offset())
    score = runs.index_select(0, first.flatten()).view(*chosen.shape, CHUNK)
    first -= row
    if cols % CHUNK:
        step = torch.arange(CHUNK, device=s.device)
        score.masked_fill_((step >= cols - first[..., None]) | (step < (wanted - first)[..., None]), -math.inf)
    return score.flatten(-2), first


def first_largest(x: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest numbers, best first, ties to the lower index: [.., n] -> [.., k]."""
    if k == 1:
        return x.max(-1, keepdim=True).indices  # documented to be the first of several maxima; topk's choice is not
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
