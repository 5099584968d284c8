from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.analyses.heads.needle_prompts import NeedlePrompt
from probe.analyses.heads.needle_runs import Group, Questions, Reader, common_prefix, put, stopper
from probe.analyses.heads.needles import HELD_OUT, Needle
from probe.analyses.heads.retrieval_scores import copied
from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import ProbeError, UsageError
from probe.tokens import tokenize


def questions(**changes):
    return Questions(**{"haystack": language_reference(), "lengths": (200,), "depths": (20, 70), **changes})


def states(cache: Any) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([1, 2, 3], [1, 2, 4, 5], 2), ([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([], [1], 0)]
)
def test_common_prefix(a, b, shared):
    assert common_prefix(torch.tensor(a), torch.tensor(b)) == shared


def test_questions_count_their_prompts():
    assert len(questions(samples=3, lengths=(200, 300))) == 3 * 2 * 2 * 2
    own = (Needle("Ada keeps bees.", "What does Ada keep?", "bees", "custom"),)
    assert len(questions(needles=own)) == 2
    assert list(questions(samples=2, lengths=(300, 200)).groups()) == [(200, 0), (200, 1), (300, 0), (300, 1)]


def test_questions_repeat_and_their_seed_changes_needles_and_prose(llama):
    first, again, other = (questions(seed=seed).group(llama, 200, 0).prompts for seed in (0, 0, 1))
    assert [p.tokens.hash for p in first] == [p.tokens.hash for p in again]
    assert not {p.needle for p in first} & {p.needle for p in other}
    assert first[0].tokens.text[:400] != other[0].tokens.text[:400]
    assert [(p.depth, p.needle.family) for p in first] == [
        (20, "numbers"), (20, "activities"), (70, "numbers"), (70, "activities")
    ]  # fmt: skip
    assert all(p.length == 200 for p in first)
    held_out = questions(pool=HELD_OUT).group(llama, 200, 0).prompts
    assert not {p.needle.question for p in first} & {p.needle.question for p in held_out}


def test_the_shared_beginning_reaches_to_the_deepest_needle(llama):
    group = questions().group(llama, 200, 0)
    lengths = [common_prefix(group.shared, prompt.tokens.ids) for prompt in group.prompts]
    assert max(lengths) == len(group.shared)
    assert len(group.shared) > 0.6 * 200
    assert lengths[0] < lengths[2]


def test_a_sample_does_not_depend_on_the_samples_before_it(llama):
    asked = questions(lengths=(90,), families=("numbers",))

    def samples(order):
        reader = Reader(asked)
        found = {}
        for index in order:
            prompt, group = reader.read(llama, index)
            found[index] = put(llama, prompt, group.cache(llama, prompt), max_new_tokens=5)
        return found

    assert samples([1]) == {index: sample for index, sample in samples([0, 1]).items() if index == 1}


def test_a_shared_beginning_gives_what_a_prompt_alone_gives(llama):
    group = questions().group(llama, 200, 0)
    prompt = group.prompts[-1]
    alone = Group((prompt,), prompt.tokens.ids[:0])
    shared = group.cache(llama, prompt)
    fresh = alone.cache(llama, prompt)
    assert shared.get_seq_length() == fresh.get_seq_length() == len(prompt.tokens) - 1
    torch.testing.assert_close(states(shared), states(fresh), rtol=1e-4, atol=1e-4)


def test_copies_equal_those_of_one_teacher_forced_pass(llama):
    group = questions(lengths=(120,), depths=(50,), families=("activities",)).group(llama, 120, 0)
    prompt = group.prompts[0]
    measured = put(llama, prompt, group.cache(llama, prompt), max_new_tokens=20)
    sample = measured.data
    assert sample["success"] and measured.prompts[0].written == len(sample["emitted"])
    emitted = torch.tensor(sample["emitted"])
    ids = torch.cat([prompt.tokens.ids, emitted[:-1]])
    _, stats = llama.run_with_stats(
        ids, stats=("top",), queries=range(len(prompt.tokens) - 1, len(ids)), logits_to_keep=1
    )
    copies = copied(stats.top_key[:, 0, :, :, 0].permute(2, 0, 1), emitted, prompt.tokens.ids, prompt.answer)
    assert copies.nonzero().tolist() == sample["copied"]
    assert len(sample["copied"]) > 20


def test_an_answer_ends_at_a_line_break_or_an_end_token(llama):
    stop = stopper(llama)
    line = llama.tokens("a\n", bos=False).ids.tolist()
    assert stop(line)
    assert not stop(line[:1])
    assert stop([*line[:1], llama.tokenizer.eos_token_id])


def test_questions_beyond_the_context_is_one_line_that_names_the_option(llama):
    with pytest.raises(UsageError, match=r"--lengths 8180 makes prompts of 8,\d\d\d tokens .* 8,192 positions"):
        questions(lengths=(200, 8180)).check(llama)
    questions(lengths=(8000,)).check(llama)


def test_questions_that_the_haystack_cannot_serve_are_refused_before_any_is_asked(llama):
    short = Haystack("lines", "The harbour froze over again. Nothing else was written down that year. " * 9)
    with pytest.raises(ProbeError, match=r"the haystack 'lines' has \d+ tokens, too few for a length of 200"):
        questions(haystack=short).check(llama)


def test_a_prompt_that_fits_the_estimate_and_not_the_context_is_refused_too(llama, monkeypatch):
    monkeypatch.setattr(llama, "context", 262)
    with pytest.raises(UsageError, match="--lengths 200"):
        questions().group(llama, 200, 0)


def test_the_plain_prompt_has_no_template(llama):
    prompt: NeedlePrompt = questions(style="plain").group(llama, 200, 0).prompts[0]
    assert "<|im_start|>" not in prompt.tokens.text
    assert prompt.tokens.ids.tolist() == tokenize(llama.tokenizer, prompt.tokens.text).ids.tolist()
