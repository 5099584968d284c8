"""From documents to prompts: what the model reads of each, and which of its queries belong to which unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from probe.analyses.stats.corpus import Document
from probe.analyses.stats.segments import Segment, Span, segmented
from probe.analyses.stats.settings import Settings
from probe.analyses.stats.transcripts import rendered
from probe.errors import UsageError
from probe.models import Model
from probe.tokens import Tokens

LACKS = {
    "word": "has no word after its first token",
    "sentence": "has no sentence after its first token",
    "turn": "is no chat transcript (\"messages\")",
    "thinking": "has no thinking between <think> and </think>",
}  # fmt: skip
"""The message for a text without a unit of each kind."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text as the model reads it.

    name: the place where it stands. segments: its units. owner: for each token the index of its unit in `segments`, -1
    for a token of none, [tokens]. cut: whether the document goes on.
    """

    name: str
    tokens: Tokens
    segments: tuple[Segment, ...]
    owner: Tensor
    cut: bool


@dataclass(frozen=True, eq=False)
class Corpus:
    """The texts that are measured, and the number of documents that only repeat one of them."""

    texts: tuple[Text, ...]
    repeated: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all texts."""
        return sum(len(text.tokens) for text in self.texts)


def corpus(model: Model, documents: Iterable[Document], settings: Settings) -> Corpus:
    """Return the texts of the documents; documents of the same tokens are one text, under the first one's name.

    Raises UsageError, with the name of the document, where a text is too long, too short, or has no unit.
    """
    if settings.max_tokens is not None and settings.max_tokens > model.context:
        raise UsageError(f"--max-tokens: {model.name} reads {model.context} tokens, got {settings.max_tokens}")
    texts: dict[str, Text] = {}
    repeated = 0
    for document in documents:
        if settings.max_texts is not None and len(texts) == settings.max_texts:
            break
        text = _text(model, document, settings)
        repeated += text.tokens.hash in texts
        texts.setdefault(text.tokens.hash, text)
    if not texts:
        raise UsageError("no texts: give --texts FILE, --prompt TEXT or --prompt-file FILE")
    return Corpus(tuple(texts.values()), repeated)


def _text(model: Model, document: Document, settings: Settings) -> Text:
    written, turns = rendered(model.tokenizer, document) if document.messages else (document.text, ())
    whole = model.tokens(written)
    tokens = _first(whole, settings.max_tokens)
    if len(tokens) > model.context:
        raise UsageError(
            f"{document.name}: {len(tokens):,} tokens, and {model.name} reads {model.context:,}; "
            f"cut texts with --max-tokens {model.context}"
        )
    if len(tokens) < 2:
        raise UsageError(f"{document.name}: {len(tokens)} token, expected at least 2; remove the text or lengthen it")
    end = len(tokens.text)
    inside = [Span(turn.label, turn.start, min(turn.end, end)) for turn in turns if turn.start < min(turn.end, end)]
    segments, owner = segmented(tokens, inside, settings.unit)
    if not segments:
        reason = LACKS.get(settings.unit, "has no token that stands for a character after its first")
        raise UsageError(f"{document.name}: the text {reason}; remove it or choose another --unit than {settings.unit}")
    return Text(document.name, tokens, segments, owner, cut=len(tokens) < len(whole))


def _first(tokens: Tokens, count: int | None) -> Tokens:
    """Return the first `count` tokens and the text that they cover."""
    if count is None or len(tokens) <= count:
        return tokens
    end = tokens.offsets[count - 1][1]
    return replace(tokens, text=tokens.text[:end], ids=tokens.ids[:count], offsets=tokens.offsets[:count])
