"""Scores and weights of single blocks, and the conditions under which they are computed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from probe.kernels.blocks import HIDDEN, Block
from probe.kernels.contract import Mask, Scoring
from probe.kernels.products import linear_serves
from probe.kernels.sweep import Sweep, as_written

pytestmark = pytest.mark.usefixtures("poisoned_empty")
BLOCK = Block(slice(1, 2), slice(0, 2), slice(3, 7), slice(0, 9))


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_scores_of_a_block(sample, softcap):
    """Query head h against KV head h // 3; row 3 + r of a text of 9 keys sees 6 + r of them."""
    query, key, _ = sample(batch=2, kv_heads=2, group=3, queries=7, keys=9)
    sweep = Sweep(query, key, Scoring(Mask(first_query=2), 0.5, softcap))
    scores = sweep.scores(BLOCK)
    assert scores.shape == (1, 2, 3, 4, 9)
    for head in range(6):
        for row in range(4):
            expected = 0.5 * key[1, head // 3] @ query[1, head, 3 + row]
            if softcap is not None:
                expected = softcap * (expected / softcap).tanh()
            found = scores[0, head // 3, head % 3, row]
            torch.testing.assert_close(found[: 6 + row], expected[: 6 + row])
            assert (found[6 + row :] <= HIDDEN).all()


def test_weights_of_a_block_and_of_a_row_that_sees_nothing(sample):
    query, key, _ = sample(batch=2, kv_heads=2, group=3, queries=7, keys=9)
    sweep = Sweep(query, key, Scoring(Mask(first_query=2), 0.5))
    lse = torch.zeros(2, 6, 7)
    lse[1, 4, 3:] = sweep.scores(BLOCK)[0, 1, 1].logsumexp(-1)
    lse[1, 5] = -torch.inf
    p = sweep.weights(BLOCK, sweep.scores(BLOCK), lse)
    torch.testing.assert_close(p[0, 1, 1].sum(-1), torch.ones(4))
    assert not p[0, 1, 2].any()
    assert not p[0, 1, 1, 0, 6:].any()


def test_rows_and_whole_are_inverse(sample):
    query, key, _ = sample(batch=2, kv_heads=2, group=3, queries=7, keys=9)
    sweep = Sweep(query, key, Scoring(Mask(), 0.5))
    rows = sweep.rows(BLOCK, query)
    assert rows.shape == (2, 12, 8)
    assert torch.equal(sweep.whole(BLOCK, rows).flatten(1, 2), query[1:2, :, 3:7])


def test_a_buffer_is_used_again():
    query = torch.zeros(1, 1, 10, 8)
    sweep = Sweep(query, query, Scoring(Mask(), 1.0), budget=400)
    large, small = sweep.buffer("scores", 5, 20), sweep.buffer("scores", 2, 3)
    assert small.data_ptr() == large.data_ptr() != sweep.buffer("weights", 2, 3).data_ptr()
    assert sweep.buffer("scores", 50, 20).shape == (50, 20)


def test_a_buffer_has_no_more_room_than_was_asked_for():
    """Pages that are never filled are pages all the same where the system clears them."""
    query = torch.zeros(2, 3, 5, 8)
    sweep = Sweep(query, query, Scoring(Mask(), 1.0))
    assert sweep.buffer("scores", 2, 3).untyped_storage().nbytes() == 2 * 3 * 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc gives memory back at a threshold")
@pytest.mark.slow
def test_a_second_call_finds_the_memory_of_the_first():
    """In a process of its own, whose heap nothing else has shaped: no call asks for many new pages, usually."""
    code = (
        "import resource, statistics, torch\n"
        "from probe.kernels.attend import attend\n"
        "from probe.kernels.contract import Request\n"
        "x, found, new = torch.zeros(1, 4, 512, 64), None, []\n"
        "for _ in range(15):\n"
        "    found, before = None, resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    found = attend(x, x, x, request=Request(entropy=True, top=1), implementation='blocked')\n"
        "    new.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "print(statistics.median(new) * resource.getpagesize())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4 * 128 * 512 * 4 / 4  # a quarter of a block's scores


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("rows", [2, 200], ids=["few", "many"])
def test_products_of_a_block(many, rows):
    """Small ones and large ones, which may be computed in different ways; both operands as blocks have them."""
    generator = torch.Generator().manual_seed(0)
    query = torch.zeros(1, 1, 4, 8)
    sweep = Sweep(query, query, Scoring(Mask(), 1.0))
    left = torch.randn(many, rows, 64, generator=generator)
    right = torch.randn(150, many, 64, generator=generator).transpose(0, 1)  # heads side by side in memory
    found = sweep.product(left, right.transpose(1, 2), "scores")
    torch.testing.assert_close(found, torch.einsum("nrk,nck->nrc", left.double(), right.double()).float())
    if many == 1 and linear_serves(left[0], right[0].t()):
        assert not sweep.buffers  # it lies where it was computed: no copy of it
    else:
        assert found.data_ptr() == sweep.buffer("scores", 1).data_ptr()


def test_half_precision_is_widened():
    query = torch.zeros(1, 1, 4, 8, dtype=torch.float16)
    assert Sweep(query, query, Scoring(Mask(), 1.0)).dtype == torch.float32
    assert Sweep(query.double(), query.double(), Scoring(Mask(), 1.0)).dtype == torch.float64


def test_as_written_turns_off_autocast_and_gradients():
    x = torch.full((2, 2), 1.001, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        product = as_written(torch.matmul)(x, x)
    assert product.dtype == torch.float32 and not product.requires_grad
