"""Hooks that last as long as a context: they are removed at its end, whatever happens inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.hooks import RemovableHandle


@contextmanager
def installed(*handles: RemovableHandle) -> Iterator[None]:
    """Keep hooks that were just registered until the context ends, and remove them then."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first(output: Any) -> Any:
    """Return the hidden states of a module's output, which many modules give as the first part of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, states: Any) -> Any:
    """Return a module's output with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def states_of(args: tuple, options: dict[str, Any]) -> Any:
    """Return the hidden states that a module is called with."""
    return options["hidden_states"] if "hidden_states" in options else first(args[0])


def with_states(args: tuple, options: dict[str, Any], states: Any) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a module's call with other hidden states."""
    if "hidden_states" in options:
        return args, options | {"hidden_states": states}
    return (states, *args[1:]), options


class Stop(Exception):
    """A hook raises this to end the run of a layer early."""
