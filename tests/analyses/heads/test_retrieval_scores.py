from __future__ import annotations

import pytest
import torch

from probe.analyses.heads.retrieval_scores import copied, found, per_step_score, recall, set_score

#          0  1  2  3  4  5  6  7   the answer is 3..5: tokens 7 8 9; token 8 also stands at 1, outside of it
PROMPT = torch.tensor([5, 8, 5, 7, 8, 9, 5, 4])
ANSWER = range(3, 6)
IDS = PROMPT[3:6]


def looking(keys: list[int]) -> torch.Tensor:
    """Largest-weight positions of one head in one layer, step by step: [steps, 1, 1]."""
    return torch.tensor(keys)[:, None, None]


def scores(keys: list[int], emitted: list[int]) -> tuple[float, float]:
    said = torch.tensor(emitted)
    copies = copied(looking(keys), said, PROMPT, ANSWER)
    return float(set_score(copies, said, IDS)), float(per_step_score(copies, said, IDS))


def test_a_head_on_every_answer_token_scores_one():
    assert scores([3, 4, 5], [7, 8, 9]) == (1.0, 1.0)


def test_a_head_one_key_further_scores_zero():
    assert scores([4, 5, 6], [7, 8, 9]) == (0.0, 0.0)


def test_the_right_key_with_another_token_said_scores_zero():
    assert scores([3, 4, 5], [1, 2, 3]) == (0.0, 0.0)


def test_the_same_token_outside_the_answer_does_not_count():
    assert scores([7, 1, 7], [7, 8, 9]) == (0.0, 0.0)


def test_an_answer_said_twice_counts_twice_per_step_and_once_as_a_set():
    assert scores([3, 4, 5, 3, 4, 5], [7, 8, 9, 7, 8, 9]) == (1.0, 2.0)


def test_a_part_of_the_answer_is_its_share():
    assert scores([3, 0, 0, 5], [7, 8, 2, 9]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_an_answer_with_a_repeated_token_is_a_set_of_its_distinct_tokens():
    prompt = torch.tensor([7, 7, 9])
    said = torch.tensor([7, 9])
    copies = copied(looking([1, 2]), said, prompt, range(0, 3))
    assert float(set_score(copies, said, prompt)) == 1.0  # both distinct tokens
    assert float(per_step_score(copies, said, prompt)) == pytest.approx(2 / 3)  # two steps, three tokens
    half = copied(looking([0, 0]), said, prompt, range(0, 3))
    assert float(set_score(half, said, prompt)) == 0.5  # token 7, which fills two places of three, is one of two


def test_heads_and_layers_are_told_apart():
    keys = torch.tensor([[[3, 0], [0, 4]], [[4, 4], [0, 0]]])  # [steps, layers, heads]
    said = torch.tensor([7, 8])
    copies = copied(keys, said, PROMPT, ANSWER)
    assert copies.tolist() == [[[True, False], [False, False]], [[True, True], [False, False]]]
    assert set_score(copies, said, IDS).tolist() == [[2 / 3, 1 / 3], [0.0, 0.0]]


def test_a_generated_token_looked_at_is_not_the_prompt():
    said = torch.tensor([7, 7])
    assert not copied(looking([3, 8]), said, PROMPT, ANSWER)[1].any()  # position 8 is the first generated token


@pytest.mark.parametrize("answer", [range(5, 5), range(6, 9), range(-1, 2)])
def test_a_span_outside_the_prompt_is_refused(answer):
    with pytest.raises(ValueError, match="answer span within"):
        copied(looking([1]), torch.tensor([7]), PROMPT, answer)


def test_steps_must_agree():
    with pytest.raises(ValueError, match=r"emitted \[steps\]"):
        copied(looking([1, 2]), torch.tensor([7]), PROMPT, ANSWER)


@pytest.mark.parametrize(
    ("generated", "answer", "share"),
    [
        ("The number is 48213.", "48213", 1.0),
        ("The number is 48214.", "48213", 0.0),
        ("Eat a Sandwich, in the park!", "eat a sandwich and sit in the park", 6 / 8),
        ("the the the", "the cat and the dog", 2 / 5),
        ("", "anything", 0.0),
    ],
)
def test_recall_counts_words_once_each(generated, answer, share):
    assert recall(generated, answer) == pytest.approx(share)


def test_found_needs_more_than_half():
    assert not found("feed birds", "feed the ducks birds")
    assert found("feed the birds", "feed the ducks birds")


def test_an_answer_without_letters_is_found_as_it_stands():
    assert found("it says :-)", ":-)")
    assert not found("it says :-(", ":-)")
