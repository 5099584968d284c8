"""Prose to hide needles in.

The default is the English of CPython's own language reference, `pydoc_data.topics`, which every Python carries: code,
grammar, tables, and every sentence with a digit or a piece of code in it are dropped. (Needles hold digits, and with
code left in, more heads look at other things than the needle.) It differs a little between Python versions, so results
record the text's hash. A user's text files are taken as they are.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.analyses.texts.files import read_text

# A full stop that ends a sentence: not one of an abbreviation or initial, and no lower-case word follows.
SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bcf)(?<!\bvs)(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\b[A-Z])"
    r"[.!?][\"”’')\]]*(?=\s+[^\sa-z]|\s*\Z)|[。！？][」』”’）]*"
)
SENTENCE_GAP = re.compile(rf"(?:{SENTENCE_END.pattern})\s*")
BREAK = re.compile(r"\n\s*\n")
# A line that only code, grammar, tables and headings have.
NOT_PROSE = re.compile(r"::=|>>>|^\s*[*=~^+|-]{3,}", re.MULTILINE)
CODE = re.compile(r"[\d_()<>=\[\]{}/\\]")
MARKUP = re.compile(r"[\"*“”‘]")
WORD = re.compile(r"[(\"“‘'*]*[A-Za-z’'-]+[)\"”’'*]*[.,;:!?]?[)\"”’]*")
ENDED = re.compile(r"[.!?][\"”’)]*$")


@dataclass(frozen=True)
class Haystack:
    """A text with a name. `window` cuts stretches out of it that start with a sentence."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Return hash of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def starts(self) -> list[int]:
        """Return character positions at which a sentence begins; the first is 0."""
        begins = (match.end() for match in SENTENCE_GAP.finditer(self.text))
        return [0, *(begin for begin in begins if begin < len(self.text))]

    def window(self, start: int, characters: int) -> str:
        """Return text from `start` on, wrapping from the end to the beginning, so that no passage comes twice.

        Shorter than asked when the whole haystack is shorter.
        """
        rotated = self.text[start : start + characters]
        missing = min(characters - len(rotated), start)
        return rotated if missing <= 0 else f"{rotated} {self.text[:missing]}"


def language_reference() -> Haystack:
    """Return English sentences of `pydoc_data.topics` as a text, topics by name; 16,763 words in Python 3.11."""
    from pydoc_data.topics import topics

    sentences: dict[str, None] = {}  # keeps order; topics repeat one another's sections
    for name in sorted(topics):
        for raw in BREAK.split(topics[name]):
            text = re.sub(r"^(\*|\[?\d+[.\]]) ", "", " ".join(raw.split()))
            if not _is_prose(raw, text):
                continue
            for sentence in SENTENCE_GAP.sub("\\g<0>\n", text).splitlines():
                if not CODE.search(sentence):
                    sentences.setdefault(MARKUP.sub("", sentence.strip()))
    return Haystack(f"language reference of Python {platform.python_version()}", " ".join(sentences))


def from_files(paths: Sequence[str | Path]) -> Haystack:
    """Return the text files one after another; raise UsageError for one that holds no UTF-8 text."""
    texts = [read_text(path).strip() for path in paths]
    return Haystack(", ".join(Path(path).name for path in paths), "\n\n".join(texts))


def _is_prose(raw: str, text: str) -> bool:
    """Return whether a paragraph reads as English: full sentences, mostly of plain words."""
    words = text.split()
    if len(words) < 10 or NOT_PROSE.search(raw) or not ENDED.search(text):
        return False
    return sum(WORD.fullmatch(word) is not None for word in words) >= 0.75 * len(words)
