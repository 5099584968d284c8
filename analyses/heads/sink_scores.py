"""Sink score: how much attention a head puts on the first position, in prose.

    sink = mean over the queries i >= 1, and over the texts, of p[i, 0]

(StreamingLLM's attention sink, Xiao et al. 2023.) The first position holds whatever the tokenizer puts in front, or
the first token of the text where it puts nothing. Query 0 sees only itself, so its weight of 1 is left out. A head's
score is larger on shorter texts, as a uniform row i gives 1 / (i + 1): compare heads on texts of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from probe.analyses.measures.head_tables import head_table
from probe.analyses.measures.intervals import bootstrap_mean
from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import UsageError
from probe.kernels.contract import Request
from probe.saving.manifest import Recorder
from probe.saving.results import Result
from probe.tokens import Tokens

if TYPE_CHECKING:
    from probe.figures import Plot
    from probe.models import Model

CHARACTERS = 12
"""Characters read for each token wanted; more than any tokenizer packs into one in prose, on average."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkScores(Result):
    """Mean attention on position 0, in 0..1, one per text: per_sample [texts, layers, heads].

    texts: the table of the texts: name of the haystack, character at which each begins, tokens.
    """

    per_sample: Tensor
    texts: pd.DataFrame
    n_kv_heads: int

    @property
    def score(self) -> Tensor:
        """[layers, heads]: mean over the texts."""
        return self.per_sample.mean(0)

    def by_layer(self) -> Tensor:
        """[layers]: mean over texts and heads."""
        return self.per_sample.mean((0, 2))

    def to_df(self) -> pd.DataFrame:
        """One row per head, strongest sink first: layer, head, kv_group, sink, sink_low, sink_high."""
        low, high = bootstrap_mean(self.per_sample, seed=self.manifest.seed)
        return head_table({"sink": self.score, "sink_low": low, "sink_high": high}, n_kv_heads=self.n_kv_heads)

    def figures(self) -> dict[str, Plot]:
        from probe.figures.heads import map_figure

        share = float(self.score.mean())
        headline = f"{share:.0%} of the attention of {self.manifest.name} goes to the first position"
        return {"sink": map_figure({"sink": self.score}, headline=headline)}


def sink_score(mass: Tensor) -> Tensor:
    """Mean weight on position 0 over queries i >= 1: [layers, batch, heads, queries] -> [batch, layers, heads]."""
    if mass.ndim != 4 or mass.shape[-1] < 2:
        raise ValueError(f"mass must be [layers, batch, heads, queries >= 2], got {list(mass.shape)}")
    return mass[..., 1:].mean(-1).transpose(0, 1)


@torch.no_grad()
def run(model: Model, *, samples: int = 4, length: int = 384, haystack: Haystack | None = None) -> SinkScores:
    """Sink scores of every head, from one batch of `samples` texts of `length` tokens, spread over the haystack.

    A shorter haystack or context makes all texts shorter; `texts` has the length used.
    """
    if samples < 1 or length < 2:
        raise UsageError(f"expected at least 1 text of 2 tokens, got samples={samples}, length={length}")
    prose = language_reference() if haystack is None else haystack
    recorder = Recorder(
        model,
        analysis="sink_scores",
        options={"samples": samples, "length": length, "haystack": prose.name, "haystack_sha256": prose.sha256},
    )
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
    return SinkScores(
        manifest=recorder.manifest(prompts=[Tokens(text="", ids=row, offsets=()) for row in ids], bos=texts[0].bos),
        per_sample=sink_score(mass[..., 0]),
        texts=pd.DataFrame({"haystack": prose.name, "character": chosen, "tokens": length}),
        n_kv_heads=model.n_kv_heads,
    )
