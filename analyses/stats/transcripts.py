"""Chat transcripts: the text that the model's chat template makes of them, and where each message stands in it.

A template may trim a message, or leave the thinking of earlier turns out, so a message need not stand in the text as it
was given. Its turn is therefore measured: the turn of a message is what changes in the text when the message's content
is replaced by another. The template's own marks, such as <|im_start|>, belong to no turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from probe.analyses.stats.corpus import Document, Message
from probe.analyses.stats.segments import Span
from probe.errors import UsageError

OTHER = "\ue000"  # a private character, with which no content begins or ends


def rendered(tokenizer: PreTrainedTokenizerBase, document: Document) -> tuple[str, tuple[Span, ...]]:
    """Return the text of a transcript and the span of each turn, labelled with its role."""
    if not tokenizer.chat_template:
        raise UsageError(f"{document.name}: this model has no chat template; give texts instead of messages")
    messages = document.messages
    text = _text(tokenizer, document.name, messages)
    turns = []
    for index, message in enumerate(messages):
        changed = [*messages[:index], {**message, "content": OTHER}, *messages[index + 1 :]]
        start, end = _difference(text, _text(tokenizer, document.name, changed))
        turns.append(Span(message["role"], start, end))
    return text, tuple(turns)


def _text(tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[Message]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except TemplateError as error:
        raise UsageError(f"{name}: the model's chat template refuses the messages ({error})") from None


def _difference(text: str, other: str) -> tuple[int, int]:
    """Return the start and end of the part of `text` that differs from `other`."""
    start = _shared(text, other)
    return start, len(text) - _shared(text[start:][::-1], other[start:][::-1])


def _shared(text: str, other: str) -> int:
    """Return how many characters two texts share at their beginning."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(text), len(other)))
