"""The units of a text: where its words, sentences and thinking stand, and which tokens belong to each.

word       a run of characters without blanks; punctuation belongs to the word that it touches
sentence   up to a full stop, ! or ? (with closing quotes and brackets) that blanks and no lower-case letter follow,
           to one of 。！？, or to an empty line; an abbreviation before a capital letter, as in "Dr. No", ends one
turn       the content of one message of a chat; the marks of the template belong to none
thinking   from an opening tag to its closing tag, or from the start of the turn where the template opened it already;
answer     from the closing tag to the end of the turn

A token belongs to the unit that holds its first character that is not blank, so " world" belongs to the word "world"
and a word of three tokens has three queries. A token of blanks alone goes by its first character.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.tokens import Tokens

WORD = re.compile(r"\S+")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[^\sa-zß-ÿ])|[。！？]+[”’」』）]*|(?=\n[^\S\n]*\n)")
THINKING_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
"""The tags between which models think; the first pair that a text holds counts."""


@dataclass(frozen=True)
class Span:
    """The characters [start, end) of a unit, and its label: what it is, or who speaks."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Segment:
    """A unit with at least one query: its number in the text from 0, its label, its characters and its queries."""

    number: int
    label: str
    start: int
    end: int
    queries: int


def spans(text: str, turns: Sequence[Span], unit: str) -> list[Span]:
    """Return the units of a text in order; `turns` are those of a transcript, none for a plain text."""
    if unit == "word":
        return [Span(unit, match.start(), match.end()) for match in WORD.finditer(text)]
    if unit == "sentence":
        return list(_sentences(text))
    if unit == "turn":
        return list(turns)
    return list(_thinking(text, turns))


def segmented(tokens: Tokens, turns: Sequence[Span], unit: str) -> tuple[tuple[Segment, ...], Tensor]:
    """Return the units that have a query, and for each token the index of its unit, -1 for none: [tokens].

    The first token belongs to no unit, nor does one that stands for no character, such as BOS.
    """
    if unit == "token":
        units = [Span(unit, start, end) for start, end in tokens.offsets]
        places = [place if end > start else -1 for place, (start, end) in enumerate(tokens.offsets)]
    else:
        units = spans(tokens.text, turns, unit)
        starts = [span.start for span in units]
        places = [_place(tokens.text, start, end, units, starts) for start, end in tokens.offsets]
    places[0] = -1
    counts = [0] * len(units)
    for place in places:
        if place >= 0:
            counts[place] += 1
    kept = [number for number, count in enumerate(counts) if count]
    index = {number: row for row, number in enumerate(kept)} | {-1: -1}
    segments = tuple(
        Segment(number, units[number].label, units[number].start, units[number].end, counts[number]) for number in kept
    )
    return segments, torch.tensor([index[place] for place in places])


def _place(text: str, start: int, end: int, units: Sequence[Span], starts: Sequence[int]) -> int:
    """Return the number of the unit to which the token of characters [start, end) belongs, -1 for none."""
    if start == end:
        return -1
    character = next((at for at in range(start, end) if not text[at].isspace()), start)
    place = bisect_right(starts, character) - 1
    return place if place >= 0 and character < units[place].end else -1


def _sentences(text: str) -> Iterator[Span]:
    start = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        sentence = text[start:end]
        if sentence.strip():
            yield Span("sentence", end - len(sentence.lstrip()), start + len(sentence.rstrip()))
        start = end


def _thinking(text: str, turns: Sequence[Span]) -> Iterator[Span]:
    """Yield thinking and answer of a plain text, or of each turn of the assistant."""
    opening, closing = next((tags for tags in THINKING_TAGS if tags[1] in text or tags[0] in text), THINKING_TAGS[0])
    before = [0, *(turn.end for turn in turns)]  # a template may write the opening tag in front of the content
    regions = [(seen, turn) for seen, turn in zip(before, turns, strict=False) if turn.label == "assistant"]
    for seen, turn in regions if turns else [(0, Span("", 0, len(text)))]:
        at, start = seen, turn.start
        while at < turn.end:
            opened, closed = text.find(opening, at, turn.end), text.find(closing, at, turn.end)
            if opened < 0 and closed < 0:
                break
            if opened >= 0 and (closed < 0 or opened < closed):
                start, closed = opened + len(opening), text.find(closing, opened, turn.end)
            yield Span("thinking", start, closed if closed >= 0 else turn.end)
            if closed < 0:
                break
            again = text.find(opening, closed, turn.end)
            at = start = again if again >= 0 else turn.end
            yield Span("answer", closed + len(closing), at)
