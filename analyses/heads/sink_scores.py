"""Sink score: how much attention a head puts on the first position, in prose.

    sink = mean over the queries i >= 1, and over the texts, of p[i, 0]

A head that puts most of its attention there is called an attention sink (StreamingLLM, Xiao et al. 2023). The first
position holds what the tokenizer puts in front, or the first token of the text where it puts nothing. Query 0 sees only
itself, so its weight of 1 is left out. A head's score is larger on shorter texts, because a uniform row i gives
1 / (i + 1): compare heads on texts of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import UsageError
from probe.frame.analysis import Measured, Prompt
from probe.kernels.contract import Request
from probe.models import Model

SAMPLES, LENGTH = 4, 384
"""The number of texts, and the tokens of each."""

CHARACTERS = 12
"""Characters read for each token wanted; no tokenizer packs this many into a token of prose, on average."""


def sink_score(mass: Tensor) -> Tensor:
    """Return the mean weight on position 0: [layers, batch, heads, queries] -> [batch, layers, heads].

    Query 0, which sees nothing else, is left out.
    """
    if mass.ndim != 4 or mass.shape[-1] < 2:
        raise ValueError(f"mass must be [layers, batch, heads, queries >= 2], got {list(mass.shape)}")
    return mass[..., 1:].mean(-1).transpose(0, 1).contiguous()  # so that its mean rounds as that of a saved record


@torch.no_grad()
def measure(
    model: Model, *, samples: int = SAMPLES, length: int = LENGTH, haystack: Haystack | None = None
) -> Measured:
    """Return the sink score of every head in each text, [texts, layers, heads], from one batch of texts.

    The texts are spread over the haystack. A shorter haystack or context makes all texts shorter.
    """
    if samples < 1 or length < 2:
        raise UsageError(f"expected at least 1 text of 2 tokens, got samples={samples}, length={length}")
    prose = language_reference() if haystack is None else haystack
    begins = prose.starts()
    chosen = [begins[index * len(begins) // samples] for index in range(samples)]
    texts = [model.tokens(prose.window(start, CHARACTERS * length)) for start in chosen]
    length = min(length, model.context, *(len(text) for text in texts))
    if length < 2:
        raise UsageError(f"expected a haystack of at least 2 tokens, got {prose.name} with {length}")
    ids = torch.stack([text.ids[:length] for text in texts])
    with model.recording(Request(), sets={"first": [0]}) as recording:
        model.prefill(ids)
    mass = recording.stats().mass
    assert mass is not None
    return Measured({"sink": sink_score(mass[..., 0]), "bos": texts[0].bos}, [Prompt.of(row) for row in ids])
