"""A faster interpreter: it patches triton's language once for each launch instead of once for each function called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def _language_patched_once_a_launch():
    """Patch triton's language once a launch, not at every call of one jitted function by another."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
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
