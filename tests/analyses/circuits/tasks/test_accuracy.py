"""Accuracy by hand, ties, one prompt, and a model's answers in batches of unlike length."""

from __future__ import annotations

import math

import pytest
import torch

from probe import Head, PruneHeads
from probe.analyses.circuits.tasks.accuracy import accuracy, score
from probe.analyses.measures.intervals import wilson
from probe.patching.pairs import Pairs, PromptPair, pairs


def made(good: list[int], bad: list[int], choices: list[list[int]] | None = None) -> Pairs:
    ids = torch.zeros(len(good), 1, dtype=torch.int64)
    return Pairs(
        clean=ids, corrupted=ids, padding=None, good=torch.tensor(good), bad=torch.tensor(bad),
        choices=None if choices is None else torch.tensor(choices),
    )  # fmt: skip


LOGITS = torch.tensor(
    [
        [9.0, 1.0, 2.0, 0.0],  # good 0 is first of all
        [4.0, 1.0, 2.0, 5.0],  # good 0 is first of the choices 0 1 2, not of all
        [3.0, 1.0, 4.0, 5.0],  # good 0 is above bad 1, below the choice 2
        [1.0, 3.0, 0.0, 0.0],  # good 0 is below bad 1
    ]
)


def test_four_prompts_by_hand():
    found = score(made([0] * 4, [1] * 4, [[0, 1, 2]] * 4), LOGITS)
    assert (found.prompts, found.choices) == (4, 3)
    assert [found.top1.value, found.good_over_bad.value, found.best.value] == [0.25, 0.75, 0.5]
    assert (found.good_over_bad.low, found.good_over_bad.high) == wilson(3, 4)
    assert (found.top1.low, found.top1.high) == wilson(1, 4) and (found.best.low, found.best.high) == wilson(2, 4)
    differences = [8, 3, 2, -2]
    assert found.ld.value == sum(differences) / 4
    assert found.ld_sd == pytest.approx(math.sqrt(sum((each - 2.75) ** 2 for each in differences) / 3))
    assert -2 <= found.ld.low < 2.75 < found.ld.high <= 8


def test_the_place_of_good_among_the_choices_does_not_matter():
    assert score(made([0] * 4, [1] * 4, [[2, 0, 1]] * 4), LOGITS).best.value == 0.5


def test_ties_are_not_right():
    found = score(made([0], [1], [[0, 1, 2]]), torch.tensor([[2.0, 2.0, 1.0]]))
    assert found.top1.value == found.good_over_bad.value == found.best.value == 0
    found = score(made([0], [1], [[0, 1, 2]]), torch.tensor([[2.0, 1.0, 2.0]]))
    assert (found.top1.value, found.good_over_bad.value, found.best.value) == (0, 1, 0)


def test_one_prompt_has_no_spread():
    found = score(made([0], [1]), LOGITS[:1])
    assert found.ld.value == 8 and math.isnan(found.ld_sd) and math.isnan(found.ld.low) and found.best is None
    row = found.to_dict()
    assert row["best"] is row["best_low"] is None and row["choices"] == 0
    assert (row["top1"], row["ld"], row["prompts"]) == (1, 8, 1)


PROMPTS = [
    PromptPair(f"{front}{one} and {other} met. {other} thanked", f"{front}{one} and {other} met. {one} thanked",
               f" {one}", f" {other}")
    for front, one, other in [("", "Mary", "John"), ("After a long lunch ", "Mark", "Sarah"), ("Then ", "Paul", "Lisa")]
]  # fmt: skip


@torch.no_grad()
def test_a_model_is_asked_prompt_by_prompt(llama):
    """Batches of any size give the mean over prompts run alone."""
    made_pairs = pairs(llama, PROMPTS)
    assert made_pairs.padding is not None
    alone = []
    for prompt in PROMPTS:
        logits = llama.logits(prompt.clean)[0, -1]
        good, bad = (llama.tokens(text).ids[-1] for text in (prompt.good, prompt.bad))
        alone.append(float(logits[good] - logits[bad]))
    for batch in (1, 2, 16):
        found = accuracy(llama, made_pairs, batch=batch)
        assert found.ld.value == pytest.approx(sum(alone) / 3, abs=1e-3)
        assert found.good_over_bad.value == sum(each > 0 for each in alone) / 3


def test_interventions_in_force_count(llama):
    made_pairs = pairs(llama, PROMPTS)
    with llama.intervene(PruneHeads([Head(23, head) for head in range(9)])):
        pruned = accuracy(llama, made_pairs)
    assert abs(pruned.ld.value - accuracy(llama, made_pairs).ld.value) > 0.5
