"""What the kernel tests share: poisoned memory, inputs of every kind, and a comparison in which NaN is not equal."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probe.kernels.contract import Statistics


@pytest.fixture(scope="session", autouse=True)
def _language_patched_once_a_launch():
    """Triton's interpreter patches its language for each launch, and again for each function inside: save that.

    It is two fifths of the time of these tests. A version of Triton that does it in another way is left alone.
    """
    interpreter = import_module("triton.runtime.interpreter") if find_spec("triton") else None
    if not hasattr(interpreter, "_patch_lang"):
        yield
        return
    tl, patch = interpreter.tl, interpreter._patch_lang
    patched: set[bool] = set()  # whether the names of triton.language.core, and those of triton.language, are patched

    def patch_once(fn):
        wanted = {value is tl.core for value in fn.__globals__.values() if value is tl or value is tl.core}
        if wanted <= patched:
            return SimpleNamespace(restore=lambda: None)
        outermost = not patched
        patched.update(wanted)
        scope = patch(fn)

        def restore():
            scope.restore()
            if outermost:
                patched.clear()

        return SimpleNamespace(restore=restore)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty and its kin return NaN (-77777; 255 for bytes), so that an element that nobody writes shows."""

    def poison(make):
        def made(*args, **options):
            tensor = make(*args, **options)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            return tensor.fill_(255 if tensor.dtype == torch.uint8 else -77777)

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture(scope="session")
def sample():
    """Makes (query, key, value) with scores of a spread of about `sharp`."""

    def make(
        *, batch=1, kv_heads=1, group=1, queries=8, keys=8, width=8, value_dim=None, sharp=2.0, seed=0, dtype=None
    ):
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            (batch, kv_heads * group, queries, width),
            (batch, kv_heads, keys, width),
            (batch, kv_heads, keys, value_dim or width),
        )
        query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
        return (query * sharp).to(dtype), key.to(dtype), value.to(dtype)

    return make


@pytest.fixture(scope="session")
def pointing():
    """Makes (query, key) for which each query puts (nearly) all its weight on the key index `target[i]`."""

    def make(target: list[int], keys: int):
        key = torch.eye(keys)[None, None]
        return 1000.0 * torch.eye(keys)[target][None, None], key

    return make


@pytest.fixture(scope="session")
def same_statistics():
    """Asserts that two Statistics have the same fields, the same NaNs and infinities, and near values elsewhere."""

    def check(found: Statistics, expected: Statistics, *, atol=1e-5, rtol=1e-5):
        for field in fields(Statistics):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            assert (one is None) == (other is None), field.name
            if one is None:
                continue
            assert one.shape == other.shape, f"{field.name}: {tuple(one.shape)} instead of {tuple(other.shape)}"
            assert torch.equal(one.isnan(), other.isnan()), f"{field.name}: NaN in other places"
            torch.testing.assert_close(
                one.double().nan_to_num(0, 1e9, -1e9),
                other.double().nan_to_num(0, 1e9, -1e9),
                atol=atol,
                rtol=rtol,
                msg=lambda text, name=field.name: f"{name}: {text}",
            )

    return check


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


@pytest.fixture(scope="session")
def largest():
    """A context that notes the most elements that any tensor made inside has."""
    return Largest
