import torch

from probe.frame.speed import measure, operations


def test_operations_are_two_per_weight_and_token_plus_the_attention(llama):
    layer = 576 * 576 * 2 + 2 * 576 * 192 + 3 * 576 * 1536  # q and o, k and v, the gated MLP
    assert operations(llama, 1, 0) == 2 * 30 * layer + 4 * 30 * 9 * 64 * 0.5
    assert operations(llama, 10, 100) == 10 * 2 * 30 * layer + 4 * 30 * 9 * 64 * 10 * 105


def test_measuring_leaves_no_trace(llama):
    before = torch.get_rng_state()
    speed = measure(llama)
    assert speed.per_operation > 0 and speed.per_step > 0 and speed.per_row >= 0
    assert torch.equal(torch.get_rng_state(), before)
