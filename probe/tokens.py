"""Which token ids does a text have, and which characters does each token cover? Every prompt becomes ids here.

One module makes all ids, so that the same text is the same prompt under every library. A place in a text ("the needle",
"the second name") is located by its characters and not by its ids, because a word has other ids after a space, after a
newline and at the start of a text. `Tokens` therefore keeps the characters of each token beside the ids.
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
    """Return the first 16 hex digits of the SHA-256 over token ids as little-endian int64."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A tokenized text has its ids, and the characters that each of its tokens covers.

    ids: [tokens] int64 on the CPU.
    offsets: the characters [start, end) of each token; a character that takes several tokens is covered by all of them,
        and a token that stands for no character (BOS) covers (n, n).
    bos: True if a beginning-of-sequence token was put in front; False if the text itself began with one.
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
        """Return the hash of the ids (`ids_hash`), by which manifests name a prompt."""
        return ids_hash(self.ids)

    def strings(self) -> list[str]:
        """Return the text that each token covers, and the name of a token that was put in front.

        A character that takes several tokens shows in all of them.
        """
        names = [self.text[start:end] for start, end in self.offsets]
        names[: len(self.prefix)] = self.prefix
        return names

    def span(self, start_char: int, end_char: int) -> range:
        """Return the indices of the tokens that overlap the characters [start_char, end_char).

        Raises UsageError for characters outside the text, ProbeError if no token covers them.
        """
        if not 0 <= start_char < end_char <= len(self.text):
            raise UsageError(
                f"the span {start_char}:{end_char} must be at least one character long and lie within the "
                f"{len(self.text)} characters of the text"
            )
        found = [i for i, (start, end) in enumerate(self.offsets) if max(start, start_char) < min(end, end_char)]
        if not found:
            raise ProbeError(f"no token covers the characters {start_char}:{end_char} of the text: widen the span")
        return range(found[0], found[-1] + 1)

    def find(self, substring: str, *, start: int = 0) -> range:
        """Return the indices of the tokens that cover the first `substring` at or after the character `start`."""
        if not substring:
            raise UsageError("the text to find is empty: give at least one character")
        at = self.text.find(substring, start)
        if at < 0:
            raise ProbeError(f"the text has no {shortened(substring)} from character {start} on: check its spelling")
        return self.span(at, at + len(substring))


Prompt = str | Tokens | Tensor
"""One prompt: a text, Tokens, or ids [tokens] or [batch, tokens]."""


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool | None = None, special: bool = True) -> Tokens:
    """Return the tokens of `text`.

    bos: None puts in front the tokens that the tokenizer puts there, True a BOS token, False nothing. A text that
        begins with that token already, as chat templates write it, gets no second one. No closing token (EOS) is added,
        because prompts are continued.
    special: True turns the names of special tokens in the text, such as <|im_start|>, into those tokens; False reads
        them as plain characters.
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
    """Return the prompt text of one user message in the tokenizer's chat template, up to where the answer begins.

    Without `system` the template's default system message stands, if it has one. Raises ProbeError for a tokenizer
    without a template, and for messages that the template refuses.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ProbeError("this model has no chat template: take an instruction-tuned model, or give a plain prompt")
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
            f"{type(tokenizer).__name__} is a slow tokenizer, without character offsets: give a model that has a "
            "tokenizer.json"
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
    """Return the ids that the tokenizer itself puts in front of `ids`."""
    if not ids:
        text, ids = "a", list(_encode(tokenizer, "a", special=special)["input_ids"])
    full = list(_encode(tokenizer, text, special=special, front=True)["input_ids"])
    for start in range(len(full) - len(ids) + 1):
        if full[start : start + len(ids)] == ids:
            return full[:start]
    raise ProbeError("this tokenizer changes the text when it adds special tokens: pass bos=True or bos=False")


def _forced(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise UsageError("bos=True was given and this tokenizer has no BOS token: pass bos=False")
    bos: Any = tokenizer.bos_token_id
    return [bos]


def _names(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]


def _cover(offsets: list[tuple[int, int]], names: list[str], text: str) -> Offsets:
    """Return offsets that leave no character out, from offsets that may.

    Byte-level tokenizers that trim offsets drop the blanks at both ends of a token: they go to the token whose name
    writes them (as a trailing G with dot), else to the token after. Normalizers that compose characters drop combining
    marks: they go to the token before.
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
    """Let the tokens that end at `end` end at `new_end`, and return it."""
    for index in range(len(closed) - 1, -1, -1):
        if closed[index][1] != end:
            break
        closed[index] = (closed[index][0], new_end)
    return new_end


def _trailing_blanks(name: str) -> int:
    word = name.rstrip("Ġ")
    return len(name) - len(word) if word else 0


def shortened(text: str, *, end: bool = False) -> str:
    """Return at most 60 characters of a text in quotes, for a message: its beginning, or its end."""
    if len(text) > 60:
        text = "..." + text[-57:] if end else text[:57] + "..."
    return repr(text)


def filler(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that fills up short rows: the padding token, else the end token, else None."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if isinstance(token, int)), None)


def padded(rows: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase, side: str) -> tuple[Tensor, Tensor | None]:
    """Return rows of ids as one [batch, tokens] tensor, padded on `side`, and its mask, True for tokens.

    The mask is None if all rows have the same length. Raises UsageError for another side or no rows, ProbeError for a
    tokenizer without a token to pad with.
    """
    if side not in ("left", "right"):
        raise UsageError(f"padding_side must be 'left' or 'right', got {side!r}")
    if not rows:
        raise UsageError("no prompt was given: give at least one")
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


def batch(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt | Sequence[str], *, side: str, padding: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return ids [batch, tokens] and their padding mask: of texts, padded on `side`; of ids, the mask that was given.

    Raises UsageError for an empty prompt, for a mask of another shape, and for a mask given with texts.
    """
    if isinstance(prompt, str):
        prompt = tokenize(tokenizer, prompt)
    if isinstance(prompt, Tokens):
        prompt = prompt.ids
    if isinstance(prompt, Tensor):
        ids = prompt if prompt.ndim == 2 else prompt[None]
        if padding is not None and padding.shape != ids.shape:
            raise UsageError(f"padding must be {list(ids.shape)} like the ids, got {list(padding.shape)}")
    elif padding is not None:
        raise UsageError("padding was given with texts, which are padded here: leave padding out, or give ids")
    else:
        ids, padding = padded([tokenize(tokenizer, text).ids for text in prompt], tokenizer, side)
    if ids.dtype != torch.int64 or ids.numel() == 0:
        raise UsageError(f"a prompt must have at least one token id (int64), got {list(ids.shape)} of {ids.dtype}")
    return ids, padding
