"""Names of a package that are imported when they are first asked for; its `settings` can then be read without torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, **places: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package: `places` says in which of its modules each name stands."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return find
