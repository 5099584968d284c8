"""Tests that run the compiled Triton kernels: `TRITON_INTERPRET=0 pytest tests/kernels/gpu` on a machine with a GPU."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("compiles kernels; with a GPU, run it with TRITON_INTERPRET=0")


@pytest.fixture(scope="session")
def on_gpu():
    """Moves tensors to the GPU, also those inside of tuples, dicts, masks and requests."""

    def move(thing):
        if isinstance(thing, torch.Tensor):
            return thing.cuda()
        if isinstance(thing, list | tuple):
            return type(thing)(move(part) for part in thing)
        if isinstance(thing, dict):
            return {name: move(part) for name, part in thing.items()}
        if is_dataclass(thing) and not isinstance(thing, type):
            return replace(thing, **{f.name: move(getattr(thing, f.name)) for f in fields(thing)})
        return thing

    return move
