"""Label scores: losses, accuracy, AUC and the fitted bias by hand, tasks from files, a model's own logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from probe import UsageError
from probe.analyses.act.classification import (
    Example,
    Scorer,
    accuracy,
    area_under_curve,
    check,
    fitted_bias,
    losses,
    read,
    sentiment,
)
from tests.probe.every_door import tiny

PROBABILITIES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
SCORES = PROBABILITIES.log()
ANSWERS = torch.tensor([0, 1, 1, 1])


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_losses_and_accuracy_by_hand():
    assert losses(SCORES, ANSWERS).tolist() == pytest.approx([-math.log(p) for p in (0.9, 0.4, 0.3, 0.8)])
    assert accuracy(SCORES, ANSWERS) == 0.5
    assert losses(SCORES + 3, ANSWERS).tolist() == pytest.approx(losses(SCORES, ANSWERS).tolist())


def test_area_under_the_curve_counts_pairs_in_order():
    answers = torch.tensor([0, 1, 0, 1])  # log-odds of label 1 rank 0 < 2 < 1 < 3: of four pairs, all are in order
    assert area_under_curve(SCORES, answers) == 1
    assert area_under_curve(SCORES, torch.tensor([0, 0, 1, 1])) == 0.75  # example 2 stands below example 1
    assert area_under_curve(SCORES, torch.tensor([1, 0, 1, 0])) == 0
    assert area_under_curve(SCORES[[0, 0]], torch.tensor([0, 1])) == 0.5
    assert math.isnan(area_under_curve(SCORES, torch.ones(4, dtype=torch.long)))


def test_area_keeps_what_is_near_certainty_apart():
    """Log-odds of 50, 60 and 70: the probability of the other label is lost beside 1."""
    scores = torch.tensor([[50.0, 0.0], [60.0, 0.0], [70.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    assert area_under_curve(scores, torch.tensor([1, 0, 0])) == 1


@pytest.mark.parametrize("bias", [-40.0, -1.3, 3.0, 40.0])
def test_a_bias_moves_accuracy_and_loss_and_leaves_the_area(bias):
    answers = torch.tensor([0, 0, 1, 1])
    shifted = (SCORES + torch.tensor([0.0, bias])).log_softmax(-1)
    assert area_under_curve(shifted, answers) == area_under_curve(SCORES, answers) == 0.75
    assert losses(shifted, answers).mean() != pytest.approx(float(losses(SCORES, answers).mean()), abs=0.05)


def test_with_three_labels_each_has_its_own_curve():
    scores = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.5, 0.4], [0.25, 0.45, 0.3], [0.3, 0.2, 0.5]]).double().log()
    answers = torch.tensor([0, 1, 2, 2])
    # labels 0 and 1: the right example on top, 1. label 2: .3 and .5 against .1 and .4, three pairs of four
    assert area_under_curve(scores, answers) == pytest.approx((1 + 1 + 0.75) / 3)


@pytest.mark.parametrize("planted", [(0.0, 1.5), (0.0, -4.0), (0.0, 0.8, -1.1)])
def test_a_planted_bias_is_found(planted):
    """Answers are drawn from the scores plus the bias, 40,000 of them: it comes back within its sampling error."""
    bias = torch.tensor(planted, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40_000, len(planted), generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    answers = (scores + bias).softmax(-1).multinomial(1, generator=generator)[:, 0]
    assert fitted_bias(scores, answers).tolist() == pytest.approx(planted, abs=0.08)


def test_the_fitted_bias_has_the_least_loss():
    bias = fitted_bias(SCORES, ANSWERS)
    assert bias[0] == 0
    shares = (SCORES + bias).softmax(-1).mean(0)  # at the minimum the mean prediction is the share of each label
    assert shares.tolist() == pytest.approx([0.25, 0.75], abs=1e-5)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_the_built_in_reviews_are_balanced_and_no_text_stands_in_two_splits():
    examples = sentiment()
    by_split = {split: [each for each in examples if each.split == split] for split in ("calibration", "test", "hard")}
    assert [len(each) for each in by_split.values()] == [24, 36, 40]
    assert all(sum(each.answer for each in own) * 2 == len(own) for own in by_split.values())
    assert len({each.prompt for each in examples}) == 100
    assert by_split["calibration"][0].labels == (" negative", " positive") and by_split["calibration"][0].answer == 1


def row(**changes: object) -> dict:
    return {"prompt": "two plus two is", "labels": [" four", " five"], "answer": " four", "split": "test"} | changes


def written(path: Path, *rows: object) -> Path:
    file = path / "task.jsonl"
    file.write_text("\n\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows) + "\n")
    return file


def test_a_task_is_read_from_json_lines(tmp_path):
    found = read(written(tmp_path, row(split="calibration", answer=" five"), row()))
    labels = (" four", " five")
    assert found == [Example(row()["prompt"], labels, 1, "calibration"), Example(row()["prompt"], labels, 0, "test")]


@pytest.mark.parametrize(
    "rows, said",
    [
        ([row(), "{"], "task.jsonl, line 3: not valid JSON"),
        ([row(answer=" six")], "line 1: expected"),
        ([{"prompt": "a"}], "KeyError: 'labels'"),
        (["[1, 2]"], "line 1: expected a JSON object"),
        ([row()], "expected a split \"calibration\" and at least one other, got ['test']"),
        ([row(split="calibration")], "got ['calibration']"),
        ([], "the file is empty"),
        ([row(split="calibration"), row(labels=[" four", " six"])], "the same labels in every line"),
        ([row(split="calibration", labels=[" four"]), row(labels=[" four"])], "at least two labels, got [' four']"),
    ],
)
def test_a_task_that_cannot_be_used_says_why_in_one_line(rows, said, tmp_path):
    with pytest.raises(UsageError) as raised:
        read(written(tmp_path, *rows))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_examples_are_checked_as_files_are():
    with pytest.raises(UsageError, match="examples: expected a split"):
        check([each for each in sentiment() if each.split == "test"], "examples")


# --- a model's scores ------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_plain_model_one_prompt_at_a_time():
    """In batches by length here, and the order of the examples kept."""
    model, labels = tiny("llama"), (" w5", " w6")
    prompts = ["w9 w20 w31", "w40 w41", "w8 w8 w7", "w50 w51 w52", "w61 w3"]
    examples = [Example(prompt, labels, index % 2, "test") for index, prompt in enumerate(prompts)]
    scorer = Scorer(model, examples, batch_size=2)
    with torch.no_grad():
        for example, scores in zip(examples, scorer.scores(), strict=True):
            logits = model.hf(torch.tensor([model.tokenizer(example.prompt).input_ids])).logits[0, -1]
            torch.testing.assert_close(scores, logits[[5, 6]].double().log_softmax(-1), rtol=0, atol=1e-5)
    assert scorer.answers.tolist() == [each.answer for each in examples]
    assert [places for places, _ in scorer.batches()] == [[0, 2], [3], [1, 4]]


def test_labels_that_end_alike_are_refused():
    examples = [Example("The film was", (" w3 w5", " w4 w5"), 0, "calibration")]
    with pytest.raises(UsageError, match="end in the same token: choose others"):
        Scorer(tiny("llama"), examples)
