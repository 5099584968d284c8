"""Buffers that outlive a call, and whose they are meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch

from probe.kernels.scratch import Scratch, forget

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept():
    forget()
    yield
    forget()


def taken(size: int = 100) -> int:
    with Scratch(CPU) as scratch:
        return scratch.buffer("scores", size, dtype=torch.float32).data_ptr()


def test_a_buffer_is_used_again_for_any_shape_that_fits():
    scratch = Scratch(CPU)
    large = scratch.buffer("scores", 5, 20, dtype=torch.float32)
    small = scratch.buffer("scores", 3, 2, 8, dtype=torch.float32)
    assert small.shape == (3, 2, 8)
    assert large.data_ptr() == small.data_ptr() != scratch.buffer("weights", 1, dtype=torch.float32).data_ptr()
    assert scratch.buffer("scores", 50, 20, dtype=torch.float32).shape == (50, 20)
    assert scratch.buffer("scores", 50, 20, dtype=torch.float64).dtype == torch.float64


def test_the_next_call_gets_what_the_last_one_had():
    address = taken()
    held = torch.empty(100)  # would be given the memory, were it free
    assert taken() == address != held.data_ptr()


def test_two_calls_at_once_share_nothing():
    with Scratch(CPU) as one, Scratch(CPU) as other:
        first = one.buffer("scores", 9, dtype=torch.float32)
        assert first.data_ptr() != other.buffer("scores", 9, dtype=torch.float32).data_ptr()


def test_threads_share_nothing():
    address, found = taken(), []
    thread = threading.Thread(target=lambda: found.append(taken()))
    thread.start()
    thread.join()
    assert found[0] != address == taken()


def test_a_call_that_fails_leaves_its_buffers():
    address = taken()
    with pytest.raises(KeyError), Scratch(CPU) as scratch:
        scratch.buffer("scores", 100, dtype=torch.float32)
        raise KeyError
    assert taken() == address


def test_a_buffer_made_in_inference_mode_can_be_written_to_outside():
    with torch.inference_mode():
        taken()
    with Scratch(CPU) as scratch:
        buffer = scratch.buffer("scores", 4, dtype=torch.float32)
        assert torch.add(torch.ones(4), 1, out=buffer).tolist() == [2, 2, 2, 2]


def test_another_device_keeps_nothing():
    meta = torch.device("meta")
    with Scratch(meta) as scratch:
        scratch.buffer("scores", 4, dtype=torch.float32)
    with Scratch(meta) as scratch:
        assert not scratch.named
