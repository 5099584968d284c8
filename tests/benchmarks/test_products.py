"""The arithmetic that is the limit is the arithmetic of attention."""

import pytest
import torch

from probe.benchmarks.kernel_cases import inputs
from probe.benchmarks.plan import Settings
from probe.benchmarks.products import prepare


@pytest.fixture
def threads():
    """The number of threads comes out as it went in."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
def test_blocks_cover_every_query_and_the_keys_that_it_sees(threads, count):
    query, key, value = inputs(Settings(threads=1, batch=2, heads=4, kv_heads=2, head_dim=16), 150)
    products = prepare(query, key, value, threads=count)
    products()
    by_hand = 0
    seen = torch.zeros(2, 4, 150)
    for q, k, v in products.blocks:
        torch.testing.assert_close(products._do((q, k, v)), (q @ k) @ v, atol=1e-4, rtol=1e-4)
        by_hand += 2 * len(q) * k.shape[1] * (16 + 16)
        for text in range(2):
            for head in range(4):
                rows = (q[:, None] == query[text, head]).all(-1).any(0)
                seen[text, head, rows] += 1
                if rows.any():
                    stop = int(rows.nonzero().max()) + 1
                    assert torch.equal(k.t(), key[text, head // 2, :stop])
                    assert torch.equal(v, value[text, head // 2, :stop])
    assert torch.equal(seen, torch.ones(2, 4, 150)) and products.operations == by_hand
    # at least the causal half, at most the whole
    half = 2 * 2 * 4 * (150 * 151 / 2) * (16 + 16)
    assert half <= products.operations < 2 * half
