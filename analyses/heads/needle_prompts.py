"""Hiding a needle in a stretch of prose, exact in tokens, and finding its answer again by characters.

A prompt of length L and depth D holds L tokens of prose and needle together. The needle stands at the end of the
sentence nearest to D percent of the prose, counted in tokens, and its answer is the tokens that overlap the answer's
characters, a space before it included. The official code searches for the answer's ids instead, which finds nothing
when a word is encoded differently after a space, and finds sentence ends by one vocabulary's id of ".", so that every
depth but 100 collapses to 0 with other tokenizers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probe.analyses.heads.needles import Needle
from probe.analyses.texts.haystacks import SENTENCE_END, Haystack
from probe.errors import ProbeError, UsageError
from probe.models import Model
from probe.tokens import Tokens

Style = Literal["chat", "plain"]

CHAT = "<book>{context}</book>\nBased on the content of the book, Question: {question}\nAnswer:"
PLAIN = "{context}\nBased on the content of the book, Question: {question}\nAnswer:"


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of prose with its token boundaries: token t of the bare text covers characters starts[t]..ends[t]."""

    haystack: str
    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    sentence_ends: Sequence[int]

    def nearest_sentence_end(self, token: float, *, below: int) -> int:
        """Return the character position of the sentence end nearest to a token index; 0 counts as a sentence end.

        Only positions before the character `below` count.
        """
        inside = [end for end in self.sentence_ends if end < below]
        if not inside:
            raise ProbeError(
                f"expected a haystack with full stops, after which a needle can stand, got none in the first {below} "
                f"characters of {self.haystack!r}: {self.text[:40]!r}..."
            )
        return min([0, *inside], key=lambda end: (abs(bisect_left(self.starts, end) - token), end))


@dataclass(frozen=True, eq=False)
class NeedlePrompt:
    """A prompt and where its parts stand.

    answer: token positions to copy. length: tokens of prose and needle. depth: percent asked for; depth_reached:
    percent of the prose's tokens before the needle. wanted_length differs from length only where no cut of the prose
    gives it exactly.
    """

    tokens: Tokens
    needle: Needle
    answer: range
    wanted_length: int
    length: int
    depth: float
    depth_reached: float


def open_window(model: Model, haystack: Haystack, *, start: int, length: int) -> Window:
    """Return at least `length` tokens of the haystack from a character position on, wrapping at its end."""
    characters = 12 * length + 1000
    while True:
        text = haystack.window(start, characters)
        offsets = model.tokens(text, bos=False).offsets
        if len(offsets) >= length:
            break
        if characters >= len(haystack.text):
            raise ProbeError(
                f"the haystack {haystack.name!r} has {len(offsets):,} tokens, too few for a length of {length:,}: "
                "give more text (--haystack) or smaller --lengths"
            )
        characters *= 2
    return Window(
        haystack=haystack.name,
        text=text,
        starts=[first for first, _ in offsets],
        ends=[last for _, last in offsets],
        sentence_ends=[match.end() for match in SENTENCE_END.finditer(text)],
    )


def ask(model: Model, context: str, question: str, *, style: Style) -> tuple[str, int]:
    """Return the whole prompt, and the character position at which `context` begins in it."""
    if style == "plain":
        return PLAIN.format(context=context, question=question), 0
    if not model.has_chat_template:
        raise UsageError(f"{model.name} has no chat template: use --prompt-style plain")
    user = CHAT.format(context=context, question=question)
    text = model.chat(user)
    place = text.find(user)
    if place < 0:
        raise UsageError(f"the chat template of {model.name} rewrites the user's text: use --prompt-style plain")
    return text, place + CHAT.index("{context}")


def encode(model: Model, text: str, *, style: Style) -> Tokens:
    """Return the tokens of a prompt; a chat template writes its own BOS where the model wants one."""
    return model.tokens(text, bos=False if style == "chat" else None)


def hide(model: Model, needle: Needle, window: Window, *, length: int, depth: float, style: Style) -> NeedlePrompt:
    """Return the prompt with the needle at `depth` percent of a context of `length` tokens."""
    own = len(model.tokens(f" {needle.text}", bos=False))
    prose = length - own
    if prose < 1:
        raise UsageError(f"--lengths {length} leaves no room for a needle of {own} tokens: {needle.text!r}")
    end = None if depth == 100 else window.nearest_sentence_end(depth / 100 * prose, below=window.ends[prose - 1])
    found: list[NeedlePrompt] = []
    for _ in range(6):  # the cut can merge with what follows it, so the length is corrected until it is met
        if not 1 <= prose <= len(window.ends):
            break
        cut = window.ends[prose - 1]
        place = cut if end is None else end
        found.append(_assemble(model, needle, window.text[:cut], place, length=length, depth=depth, style=style))
        if found[-1].length == length:
            break
        prose += length - found[-1].length
    return min(found, key=lambda prompt: abs(prompt.length - length))  # not empty: the first cut lies in the window


def _assemble(
    model: Model, needle: Needle, prose: str, end: int, *, length: int, depth: float, style: Style
) -> NeedlePrompt:
    """Return the prompt whose needle follows the character `end` of the prose."""
    before = f"{prose[:end]} " if end else ""
    after = prose[end:] if end else f" {prose}"
    context = f"{before}{needle.text}{after}"
    text, start = ask(model, context, needle.question, style=style)
    tokens = encode(model, text, style=style)
    place = start + len(before)
    answer = place + needle.text.rindex(needle.answer)
    spaced = answer - 1 if text[:answer].endswith(" ") else answer
    whole = len(tokens.span(start, start + len(context)))
    own = len(tokens.span(place, place + len(needle.text)))
    ahead = len(tokens.span(start, start + end)) if end else 0
    return NeedlePrompt(
        tokens, needle, answer=tokens.span(spaced, answer + len(needle.answer)), wanted_length=length, length=whole,
        depth=depth, depth_reached=100 * ahead / (whole - own),
    )  # fmt: skip
