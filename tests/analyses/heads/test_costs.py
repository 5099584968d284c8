import time

import torch

from probe.analyses.heads import retrieval as retrieval_heads
from probe.analyses.heads.costs import QUESTION, Speed, estimate, measure, operations


def test_operations_are_two_per_weight_and_token_plus_the_attention(llama):
    layer = 576 * 576 * 2 + 2 * 576 * 192 + 3 * 576 * 1536  # q and o, k and v, the gated MLP
    assert operations(llama, 1, 0) == 2 * 30 * layer + 4 * 30 * 9 * 64 * 0.5
    assert operations(llama, 10, 100) == 10 * 2 * 30 * layer + 4 * 30 * 9 * 64 * 10 * 105


def test_tokens_count_shared_prose_once(llama):
    plan = retrieval_heads.options(lengths=(300,), depths=(10, 90), samples=2)
    cost = estimate(llama, plan=plan, kinds=())
    assert cost.needles == 8
    assert cost.tokens == 2 * (270 + 2 * (270 + QUESTION) + 2 * (30 + QUESTION))
    assert cost.score_seconds == cost.validation_seconds == 0


def test_the_needle_estimate_is_of_the_right_order(llama):
    """Within five times: the machine may be busier in one of the two measurements."""
    plan = retrieval_heads.options(lengths=(300,), depths=(50,))
    expected = estimate(llama, plan=plan, kinds=()).needle_seconds
    start = time.perf_counter()
    retrieval_heads.run(llama, lengths=(300,), depths=(50,))
    assert expected / 5 < time.perf_counter() - start < expected * 5


def test_every_part_that_is_asked_for_costs_something(llama):
    speed = Speed(per_operation=1e-11, per_step=0.03, per_row=0.01)
    bare = estimate(llama, plan=None, kinds=(), speed=speed)
    assert bare.needles == bare.tokens == bare.seconds == 0
    for kind in ("induction", "copying", "sink"):
        assert estimate(llama, plan=None, kinds=(kind,), speed=speed).score_seconds > 0
    few, many = (estimate(llama, plan=None, kinds=(), conditions=count, speed=speed) for count in (7, 25))
    assert many.validation_seconds > 1.5 * few.validation_seconds > 0
    assert many.memory > bare.memory + 15 * 2 * 30 * 3 * 64 * 384 * 4  # a cache for each row


def test_measuring_leaves_no_trace(llama):
    before = torch.get_rng_state()
    speed = measure(llama)
    assert speed.per_operation > 0 and speed.per_step > 0 and speed.per_row >= 0
    assert torch.equal(torch.get_rng_state(), before)
