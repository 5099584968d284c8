"""Pattern scores: perfect heads score 1, uniform ones what they must; real maps; the induction claim by pruning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probe import Head, PruneHeads, Request, UsageError
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads.patterns import PATTERNS, band_means, bands, repeated_tokens
from probe.analyses.measures.agreement import top_heads
from probe.errors import ProbeError
from probe.frame.analysis import Measured
from probe.kernels.attend import attend
from probe.models import Model


def looking_at(targets: Tensor) -> tuple[Tensor, Tensor]:
    """One head's query and key [1, 1, tokens, tokens] whose row i has all its weight on targets[i]."""
    tokens = len(targets)
    key = torch.eye(tokens)
    return 200 * key[targets][None, None], key[None, None]


def ids_of(measured: Measured) -> Tensor:
    """The prompts that were read, [sequences, tokens]."""
    return torch.tensor([prompt.ids for prompt in measured.prompts])


@pytest.mark.parametrize("start", [0, 1])
def test_a_perfect_head_scores_one_and_nothing_else(start: int):
    length = 5
    i = torch.arange(start + 2 * length)
    second = i >= start + length
    targets = {
        "induction": torch.where(second, i - length + 1, i),
        "previous_token": (i - 1).clamp(min=0),
        "duplicate_token": torch.where(second, i - length, i),
    }
    pairs = [looking_at(targets[pattern]) for pattern in PATTERNS]
    query, key = (torch.cat(part, dim=1) for part in zip(*pairs, strict=True))
    for place, (pattern, (band, keys)) in enumerate(bands(start, length).items()):
        _, found = attend(query, key, key, scale=1.0, request=Request(received=band))
        assert found.received is not None
        expected = [0.0, 0.0, 0.0]
        expected[place] = 1.0
        assert pattern == PATTERNS[place]
        assert band_means(found.received[None], keys)[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_uniform_head_scores_the_mean_of_one_over_the_row():
    start, length = 1, 4
    nothing = torch.zeros(1, 1, start + 2 * length, 3)
    shares = {
        "induction": [1 / (t + 1) for t in range(5, 9)],
        "duplicate_token": [1 / (t + 1) for t in range(5, 9)],
        "previous_token": [1 / (t + 1) for t in range(1, 9)],
    }
    for pattern, (band, keys) in bands(start, length).items():
        _, found = attend(nothing, nothing, nothing, request=Request(received=band))
        assert found.received is not None
        mean = sum(shares[pattern]) / len(shares[pattern])
        assert band_means(found.received[None], keys).item() == pytest.approx(mean, rel=1e-5)


def test_keys_outside_the_band_are_refused():
    received = torch.tensor([0.5, 0.5, torch.nan])[None, None, None]
    assert band_means(received, range(0, 2)).item() == 0.5
    for keys in (range(1, 3), range(2, 5)):
        with pytest.raises(ValueError, match="keys must lie within the band"):
            band_means(received, keys)


def test_scores_equal_loops_over_the_eager_maps(llama: Model):
    length = 9
    measured = pattern_heads.measure(llama, sequences=2, length=length, seed=3)
    former = str(llama.hf.config._attn_implementation)
    llama.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = llama.hf(input_ids=ids_of(measured), output_attentions=True, use_cache=False)
    finally:
        llama.hf.set_attn_implementation(former)
    maps = torch.stack(output.attentions, dim=1).double()  # [sequences, layers, heads, queries, keys]
    second = range(length, 2 * length)
    expected = {
        "induction": torch.stack([maps[..., t, t - length + 1] for t in second]).mean(0),
        "duplicate_token": torch.stack([maps[..., t, t - length] for t in second]).mean(0),
        "previous_token": torch.stack([maps[..., t, t - 1] for t in range(1, 2 * length)]).mean(0),
    }
    for pattern in PATTERNS:
        torch.testing.assert_close(measured.data[pattern].double(), expected[pattern], rtol=1e-4, atol=1e-5)


def test_prompts_are_two_copies_of_different_ordinary_tokens(llama: Model):
    front = torch.tensor([1])
    ids = repeated_tokens(llama.tokenizer, front, sequences=3, length=40, seed=0)
    assert ids.shape == (3, 81) and (ids[:, 0] == 1).all()
    assert torch.equal(ids[:, 1:41], ids[:, 41:])
    special = set(llama.tokenizer.all_special_ids)
    for row in ids.tolist():
        assert len(set(row[1:41])) == 40 and not special & set(row[1:])
        assert all("\ufffd" not in llama.tokenizer.decode([token]) for token in row)
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(ids, repeated_tokens(llama.tokenizer, front, sequences=3, length=40, seed=0))
    assert not torch.equal(ids, repeated_tokens(llama.tokenizer, front, sequences=3, length=40, seed=1))


class Lexicon:
    """A vocabulary of six: one special, one added, one unused, half a character, and two words."""

    all_special_ids = (0,)
    added_tokens_decoder = {1: " tool"}  # noqa: RUF012  # stands in for a tokenizer's attribute

    def __len__(self) -> int:
        return 6

    def decode(self, ids: list[int]) -> str:
        return [" start", " tool", "<unused5>", "\ufffd", " word", "<"][ids[0]]


def test_a_vocabulary_without_enough_ordinary_tokens_says_so():
    front = torch.zeros(0, dtype=torch.int64)
    ids = repeated_tokens(Lexicon(), front, sequences=5, length=2, seed=0)  # type: ignore[arg-type]
    assert set(ids.flatten().tolist()) == {4, 5}
    with pytest.raises(ProbeError, match="2 ordinary tokens, fewer than a length of 3"):
        repeated_tokens(Lexicon(), front, sequences=1, length=3, seed=0)  # type: ignore[arg-type]


def test_mistakes_are_one_line(llama: Model):
    with pytest.raises(UsageError, match="expected at least 1 sequence of 2 tokens, got sequences=0"):
        pattern_heads.measure(llama, sequences=0)
    with pytest.raises(UsageError, match="needs 10000 positions"):
        pattern_heads.measure(llama, sequences=1, length=5000)


@pytest.fixture(scope="module")
def found(llama: Model) -> Measured:
    return pattern_heads.measure(llama, sequences=4, length=48)


def test_the_packaged_models_induction_heads(found: Measured):
    score = found.data["induction"].mean(0)
    assert set(top_heads(score, 4)) == {Head(18, 6), Head(17, 3), Head(17, 4), Head(18, 7)}
    assert score[18, 6] > 0.8
    assert top_heads(score, 1) == [Head(18, 6)]


@torch.no_grad()
def second_copy_loss(model: Model, ids: Tensor, heads: list[Head]) -> float:
    """Mean loss in nats on the tokens of the second copy but its first, which nothing foretells."""
    length = ids.shape[1] // 2
    with model.intervene(PruneHeads(heads)):
        logits = model.hf(input_ids=ids, use_cache=False, logits_to_keep=length).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, -length + 1 :].flatten()).item()


@pytest.mark.slow
def test_pruning_the_induction_heads_ends_the_repetition(llama: Model, found: Measured):
    """The claim's own prediction: without these heads the second copy is no longer foretold; without others it is."""
    score = found.data["induction"].mean(0)
    best = top_heads(score, 5)
    rest = sorted(set(llama.heads()) - set(top_heads(score, 30)))
    ids = ids_of(found)[:2]
    intact = second_copy_loss(llama, ids, [])
    harm = second_copy_loss(llama, ids, best) - intact
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = [rest[index] for index in torch.randperm(len(rest), generator=generator)[:5].tolist()]
        assert second_copy_loss(llama, ids, drawn) - intact < 0.35 * harm
    assert intact < 3.5 and intact + harm > 10  # a guess among all tokens costs log 49,152 = 10.8
