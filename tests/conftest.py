"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import signal

# A shell that starts the tests in the background makes them, and what they start, deaf to interruptions.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing in the suite may reach for a hub; set before anything imports huggingface_hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Triton's kernels run in its interpreter, unless who has a GPU says 0; set before anything imports triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


@pytest.fixture(scope="session")
def llama():
    """The packaged SmolLM2-135M-Instruct, loaded once. It must come out of every test as it went in."""
    import probe

    return probe.load("llama")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_readme.py", item.path not in slow))
