"""A tiny model whose tokens are words, and which has a chat template."""

from __future__ import annotations

import probe
from tests.probe.every_door import tiny

TEMPLATE = (
    "{% for message in messages %}w3 {{ message['role'] }} {{ message['content'] | trim }} w4 {% endfor %}"
)  # fmt: skip
"""It puts the role in front of each message, w4 behind it, and trims the message."""


def chatty() -> probe.Model:
    """Return the tiny Llama with this template."""
    model = tiny("llama")
    model.tokenizer.chat_template = TEMPLATE
    return model
