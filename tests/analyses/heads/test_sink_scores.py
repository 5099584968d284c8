"""Sink scores: hand-written masses and eager maps; test_catalogue.py knows the packaged model's layers."""

from __future__ import annotations

import pytest
import torch

from probe import UsageError
from probe.analyses.heads import sink_scores
from probe.analyses.heads.sink_scores import sink_score
from probe.analyses.texts.haystacks import Haystack
from probe.models import Model


def test_the_first_query_is_left_out():
    mass = torch.tensor([[1.0, 0.5, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0]])[None, None]  # one layer, one text, two heads
    assert sink_score(mass).tolist() == [[[0.25, 1.0]]]


def test_texts_come_first():
    mass = torch.rand(3, 2, 5, 7)  # layers, batch, heads, queries
    found = sink_score(mass)
    assert found.shape == (2, 3, 5) and found[1, 2, 4].item() == pytest.approx(mass[2, 1, 4, 1:].mean().item())


def test_too_few_queries_are_refused():
    with pytest.raises(ValueError, match="queries >= 2"):
        sink_score(torch.ones(1, 1, 1, 1))


def test_scores_equal_the_eager_maps(llama: Model):
    prose = Haystack(
        "lines", "\n\n".join(f"In the year {year} the harbour froze over again." for year in range(1700, 1760))
    )
    found = sink_scores.measure(llama, samples=2, length=20, haystack=prose)
    former = str(llama.hf.config._attn_implementation)
    llama.hf.set_attn_implementation("eager")
    try:
        for row, start in enumerate([0, prose.text.index("In the year 1730")]):
            ids = llama.tokens(prose.text[start:]).ids[None, :20]
            with torch.no_grad():
                maps = torch.cat(llama.hf(input_ids=ids, output_attentions=True, use_cache=False).attentions)
            torch.testing.assert_close(found.data["sink"][row], maps[..., 1:, 0].mean(-1), rtol=1e-4, atol=1e-5)
    finally:
        llama.hf.set_attn_implementation(former)


def test_mistakes_are_one_line(llama: Model):
    with pytest.raises(UsageError, match="expected at least 1 text of 2 tokens, got samples=0"):
        sink_scores.measure(llama, samples=0)
    with pytest.raises(UsageError, match="expected a haystack of at least 2 tokens, got word with 1"):
        sink_scores.measure(llama, samples=1, haystack=Haystack("word", "Word"))


def test_a_short_haystack_is_used_whole(llama: Model):
    prose = Haystack("short", "The ferry leaves at noon.")
    found = sink_scores.measure(llama, samples=1, haystack=prose)
    assert [prompt.hash for prompt in found.prompts] == [llama.tokens(prose.text).hash]
