"""Text to token ids, once and for all: every prompt in this package becomes ids here and nowhere else.

Spans are found by characters, not by matching ids: a word encodes to other ids after a space, after a newline and at
the start of a text, so an id search finds the wrong place or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.errors import ProbeError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = tuple[tuple[int, int], ...]


def ids_hash(ids: Tensor) -> str:
    """The first 16 hex digits of sha256 over token ids as little-endian int64."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A tokenized text.

    ids: [tokens] int64 on the CPU.
    offsets: the characters [start, end) that each token covers; a character that takes several tokens is covered by
        each of them, and a token that stands for no character (BOS) covers (n, n).
    bos: whether a beginning-of-sequence token was put in front; False if the text itself began with one.
    prefix: the names of the tokens that were put in front.
    """

    text: str
    ids: Tensor
    offsets: Offsets
    bos: bool = False
    prefix: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def hash(self) -> str:
        """The first 16 hex digits of sha256 over the ids as little-endian int64."""
        return ids_hash(self.ids)

    def strings(self) -> list[str]:
        """The text each token covers, a token put in front by its name; a character in several tokens shows in each."""
        names = [self.text[start:end] for start, end in self.offsets]
        names[: len(self.prefix)] = self.prefix
        return names

    def span(self, start_char: int, end_char: int) -> range:
        """The indices of the tokens that overlap the characters [start_char, end_char). Raises if there are none."""
        if not 0 <= start_char < end_char <= len(self.text):
            raise UsageError(f"expected 0 <= start < end <= {len(self.text)} characters, got {start_char}:{end_char}")
        found = [i for i, (start, end) in enumerate(self.offsets) if max(start, start_char) < min(end, end_char)]
        if not found:
            raise ProbeError(f"no token covers the characters {start_char}:{end_char} of the text")
        return range(found[0], found[-1] + 1)

    def find(self, substring: str, *, start: int = 0) -> range:
        """The indices of the tokens covering the first occurrence of `substring` at or after the character `start`."""
        if not substring:
            raise UsageError("expected some text to find, got an empty string")
        at = self.text.find(substring, start)
        if at < 0:
            raise ProbeError(f"expected {_short(substring)} in the text from character {start}, found it nowhere")
        return self.span(at, at + len(substring))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool | None = None, special: bool = True) -> Tokens:
    """Tokens of `text`.

    bos: None puts in front what the tokenizer puts in front, True a BOS token, False nothing. A text that already
        begins with it, as chat templates write it, gets no second one. No closing token (EOS) is added: prompts go on.
    special: whether names of special tokens in the text, such as <|im_start|>, become those tokens; False reads them
        as plain characters.
    Raises ProbeError for a tokenizer without character offsets, UsageError for bos=True where there is no BOS token.
    """
    encoded = _encode(tokenizer, text, special=special)
    ids = list(encoded["input_ids"])
    front = _front(tokenizer, text, ids, special=special) if bos is None else _forced(tokenizer) if bos else []
    if ids[: len(front)] == front:
        front = []
    names = tuple(_names(tokenizer, front))
    offsets = _cover([tuple(pair) for pair in encoded["offset_mapping"]], _names(tokenizer, ids), text)
    return Tokens(
        text=text,
        ids=torch.tensor(front + ids, dtype=torch.int64),
        offsets=((0, 0),) * len(front) + offsets,
        bos=bool(front) and tokenizer.bos_token_id in front,
        prefix=names,
    )


def chat(tokenizer: PreTrainedTokenizerBase, user: str, *, system: str | None = None) -> str:
    """The prompt text of one user message by the tokenizer's chat template, up to where the model's answer begins.

    Without `system` the template's own default stands, where it has one.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ProbeError("this model has no chat template: expected an instruction-tuned model, or give a plain prompt")
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ProbeError(f"the model's chat template refuses these messages: {error}") from error
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool, front: bool = False) -> Any:
    if not tokenizer.is_fast:
        raise ProbeError(
            f"expected a tokenizer with character offsets (tokenizer.json), got the slow {type(tokenizer).__name__}"
        )
    return tokenizer(
        text,
        add_special_tokens=front,
        return_offsets_mapping=not front,
        return_attention_mask=False,
        return_token_type_ids=False,
        split_special_tokens=not special,
        verbose=False,
    )


def _front(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], *, special: bool) -> list[int]:
    """The ids that the tokenizer itself puts in front of `ids`."""
    if not ids:
        text, ids = "a", list(_encode(tokenizer, "a", special=special)["input_ids"])
    full = list(_encode(tokenizer, text, special=special, front=True)["input_ids"])
    for start in range(len(full) - len(ids) + 1):
        if full[start : start + len(ids)] == ids:
            return full[:start]
    raise ProbeError("this tokenizer changes the text when it adds special tokens: give bos=True or bos=False")


def _forced(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise UsageError("expected a tokenizer with a BOS token for bos=True, got one without: use bos=False")
    bos: Any = tokenizer.bos_token_id
    return [bos]


def _names(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]


def _cover(offsets: list[tuple[int, int]], names: list[str], text: str) -> Offsets:
    """Offsets that leave no character out, from offsets that may.

    Byte-level tokenizers that trim offsets drop the blanks at both ends of a token: those go to the token whose name
    writes them (as a trailing G with dot), else to the token after. Normalizers that compose characters drop combining
    marks: those go to the token before.
    """
    closed: list[tuple[int, int]] = []
    covered = 0
    for index, (start, end) in enumerate(offsets):
        blanks = covered + len(names[index])
        if start == end and set(names[index]) == {"Ġ"} and text[covered:blanks].isspace():
            start, end = covered, blanks
        if start > covered and closed:
            gap = text[covered:start]
            marks = next((n for n, char in enumerate(gap) if char.isspace()), len(gap))
            covered = _extend(closed, covered, covered + (marks or min(_trailing_blanks(names[index - 1]), len(gap))))
        closed.append((min(start, covered), end))
        covered = max(covered, end)
    if closed:
        _extend(closed, covered, len(text))
    return tuple(closed)


def _extend(closed: list[tuple[int, int]], end: int, new_end: int) -> int:
    """Moves the tokens that end at `end` to `new_end`, which it returns."""
    for index in range(len(closed) - 1, -1, -1):
        if closed[index][1] != end:
            break
        closed[index] = (closed[index][0], new_end)
    return new_end


def _trailing_blanks(name: str) -> int:
    word = name.rstrip("Ġ")
    return len(name) - len(word) if word else 0


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def filler(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that fills up short rows: the padding token, else the end token."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if isinstance(token, int)), None)


def padded(rows: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase, side: str) -> tuple[Tensor, Tensor | None]:
    """Rows of ids as one [batch, tokens] tensor and its mask (True for tokens), padded on `side`."""
    if side not in ("left", "right"):
        raise UsageError(f"padding_side must be 'left' or 'right', got {side!r}")
    if not rows:
        raise UsageError("expected at least one prompt, got none")
    length = max(len(row) for row in rows)
    if all(len(row) == length for row in rows):
        return torch.stack(list(rows)), None
    fill = filler(tokenizer)
    if fill is None:
        raise ProbeError("the tokenizer has neither a padding nor an end token: run the prompts one by one")
    ids = torch.full((len(rows), length), fill, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        place = slice(length - len(tokens), None) if side == "left" else slice(0, len(tokens))
        ids[row, place] = tokens
        mask[row, place] = True
    return ids, mask
