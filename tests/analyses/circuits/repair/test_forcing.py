"""Rows forced onto tokens: what they write, which tokens are drawn, and how answers are compared."""

from __future__ import annotations

import torch

from probe.analyses.circuits.repair import forcing as repair
from probe.analyses.circuits.tasks.registry import task
from probe.heads import Head


@torch.no_grad()
def test_a_forced_row_is_the_mean_of_the_two_values(llama):
    pairs = task(llama, "colored-objects", prompts=3, seed=4).pairs(llama)
    wrong, head = repair.wrong_columns(pairs), Head(23, 3)
    rows: dict[str, torch.Tensor] = {}

    def keep(_, args):
        rows["z"] = args[0].clone()

    projection = llama.hf.model.layers[23].self_attn.o_proj
    handles = [
        projection.register_forward_pre_hook(keep),
        llama.hf.model.layers[23].self_attn.v_proj.register_forward_hook(lambda _, a, out: rows.update(v=out.clone())),
    ]
    try:
        given = repair.answers(llama, pairs, heads=[head], keys=wrong, batch=3)
    finally:
        for handle in handles:
            handle.remove()
    at = torch.arange(3)[:, None]
    order = next(pairs.batches(3))[0]
    v = rows["v"].view(3, -1, 3, 64)[at, wrong[order], 1].mean(1)
    torch.testing.assert_close(rows["z"][:, -1, 192:256], v, rtol=1e-4, atol=1e-5)
    plain = repair.answers(llama, pairs)
    assert given.top.shape == plain.top.shape == (3,)


def test_random_columns_spare_the_answers(llama):
    pairs = task(llama, "colored-objects", prompts=5).pairs(llama)
    found = repair.random_columns(pairs, 2, seed=1)
    answers = torch.cat([repair.wrong_columns(pairs), pairs.roles["right"][:, None]], 1)
    for row in range(5):
        start = 0 if pairs.padding is None else int(pairs.padding[row].int().argmax())
        assert len(set(found[row].tolist())) == 2 and not set(found[row].tolist()) & set(answers[row].tolist())
        assert all(start <= column < pairs.end for column in found[row].tolist())


def test_accuracy_is_compared_answer_by_answer():
    before = repair.Answers(torch.tensor([0, 1, 0, 2]), torch.tensor([5, 6, 7, 8]))
    after = repair.Answers(torch.tensor([0, 0, 1, 0]), torch.tensor([5, 5, 5, 5]))
    row = repair.compared(after, before, torch.tensor([5, 5, 7, 8]))
    assert (row["best"], row["top1"], row["newly_wrong"], row["newly_right"], row["n"]) == (0.75, 0.5, 1, 2, 4)
    assert 0 < row["best_low"] < 0.75 < row["best_high"] < 1
