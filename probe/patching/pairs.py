"""On which prompts does patching run? On pairs: a clean prompt, and a corrupted one with the same number of tokens.

A pair differs in one fact, such as the name that decides the answer. Values of the corrupted run enter the clean run,
and the effect is read at END, the last token of the prompt, from the logit difference

    LD = logit(good) - logit(bad),

where `good` is the right answer to the clean prompt and `bad` the answer that it is compared with. Each answer is one
token. A role names a token of the prompt by what it is in the task ("S2", the second mention of the subject).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import ProbeError, UsageError
from probe.tokens import Tokens, ids_hash, padded, shortened

if TYPE_CHECKING:
    from probe.models import Model


@dataclass(frozen=True)
class PromptPair:
    """One clean and one corrupted prompt, as text.

    good, bad: the answers as they follow the prompt (" Mary"); each must be one token. choices: all answers to choose
    from, `good` first. roles: characters [start, end) of the clean prompt by name ("S2"); the last token that covers
    them has the role. group: a name for prompts whose activations may be averaged together, such as the template's.
    """

    clean: str
    corrupted: str
    good: str
    bad: str
    choices: tuple[str, ...] = ()
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompts as ids on the CPU, padded on the left, so that END is the last column.

    clean, corrupted: [prompts, tokens]. padding: [prompts, tokens], True for tokens; None if all prompts have the same
    length. good, bad: [prompts], ids of the answers. choices: [prompts, choices], or None. roles: [prompts], columns by
    name. groups: the prompts' groups, or none.
    """

    clean: Tensor
    corrupted: Tensor
    padding: Tensor | None
    good: Tensor
    bad: Tensor
    choices: Tensor | None = None
    roles: Mapping[str, Tensor] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.clean.shape[0]

    @property
    def end(self) -> int:
        """Return the column of END."""
        return self.clean.shape[1] - 1

    @property
    def lengths(self) -> Tensor:
        """Return the number of tokens of each prompt, [prompts]."""
        return torch.full((len(self),), self.clean.shape[1]) if self.padding is None else self.padding.sum(1)

    def hashes(self) -> list[str]:
        """Return a hash of each pair, over the ids of both prompts."""
        return [ids_hash(torch.cat(sides)) for sides in zip(self.clean, self.corrupted, strict=True)]

    def take(self, rows: Sequence[int] | Tensor) -> Pairs:
        """Return some of the pairs, by index or mask, without the padding that none of them needs."""
        rows = torch.as_tensor(rows)
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        shift = 0
        if self.padding is not None:
            shift = int((~self.padding[rows]).sum(1).min())
        padding = None if self.padding is None else self.padding[rows, shift:]
        return Pairs(
            clean=self.clean[rows, shift:],
            corrupted=self.corrupted[rows, shift:],
            padding=None if padding is None or bool(padding.all()) else padding,
            good=self.good[rows],
            bad=self.bad[rows],
            choices=None if self.choices is None else self.choices[rows],
            roles={name: columns[rows] - shift for name, columns in self.roles.items()},
            groups=tuple(self.groups[row] for row in rows.tolist()) if self.groups else (),
        )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Pairs]]:
        """Yield rows and pairs, at most `size` at a time; prompts of similar length come together."""
        for rows in self.lengths.argsort(stable=True).split(size):
            yield rows, self.take(rows)

    def logit_difference(self, logits: Tensor) -> Tensor:
        """Return logit(good) - logit(bad) at END, [prompts], of logits [prompts, vocab] or [prompts, tokens, vocab]."""
        end = logits[:, -1] if logits.ndim == 3 else logits
        good, bad = (ids.to(end.device)[:, None] for ids in (self.good, self.bad))
        return (end.gather(1, good) - end.gather(1, bad))[:, 0]


def pairs(model: Model, prompts: Sequence[PromptPair], *, bos: bool | None = None) -> Pairs:
    """Return the pairs as ids. Raises UsageError with the prompt if lengths differ or an answer has several tokens."""
    if not prompts:
        raise UsageError("no pair of prompts was given: give at least one")
    clean = [model.tokens(prompt.clean, bos=bos) for prompt in prompts]
    corrupted = [model.tokens(prompt.corrupted, bos=bos) for prompt in prompts]
    for prompt, one, other in zip(prompts, clean, corrupted, strict=True):
        if len(one) != len(other):
            raise UsageError(
                f"clean and corrupted prompt must have the same number of tokens, got {len(one)} and {len(other)}: "
                f"{shortened(prompt.clean, end=True)} and {shortened(prompt.corrupted, end=True)}"
            )
        if len(one) == 0:
            raise UsageError("a prompt is empty: give at least one token")
        if prompt.choices and prompt.choices[0] != prompt.good:
            raise UsageError(f"choices must begin with the answer in good, {prompt.good!r}, got {prompt.choices}")
    ids, padding = padded([tokens.ids for tokens in clean], model.tokenizer, "left")
    others, _ = padded([tokens.ids for tokens in corrupted], model.tokenizer, "left")
    names = list(prompts[0].roles)
    if any(set(prompt.roles) != set(names) for prompt in prompts):
        raise UsageError(f"every prompt must name the same roles as the first one, {names}")
    rows = list(zip(prompts, clean, strict=True))
    columns = {
        name: torch.tensor([_token(prompt, tokens, name) + ids.shape[1] - len(tokens) for prompt, tokens in rows])
        for name in names
    }
    counts = {len(prompt.choices) for prompt in prompts}
    if len(counts) > 1:
        raise UsageError(f"every prompt must have the same number of choices, got {sorted(counts)}")
    good = [answer(model, tokens, prompt.good) for prompt, tokens in rows]
    bad = [answer(model, tokens, prompt.bad) for prompt, tokens in rows]
    for prompt, one, other in zip(prompts, good, bad, strict=True):
        if one == other:
            place = shortened(prompt.clean, end=True)
            raise UsageError(f"good and bad must differ, got {prompt.good!r} for both after {place}")
    choices = [[answer(model, tokens, choice) for choice in prompt.choices] for prompt, tokens in rows]
    return Pairs(
        clean=ids,
        corrupted=others,
        padding=padding,
        good=torch.tensor(good),
        bad=torch.tensor(bad),
        choices=None if counts == {0} else torch.tensor(choices),
        roles=columns,
        groups=tuple(prompt.group for prompt in prompts),
    )


def answer(model: Model, prompt: Tokens, text: str) -> int:
    """Return the id of the one token by which `text` follows the prompt. Raises UsageError if it takes several."""
    full = model.tokens(prompt.text + text, bos=prompt.bos).ids
    if len(full) != len(prompt) + 1 or not bool((full[: len(prompt)] == prompt.ids).all()):
        raise UsageError(
            f"the answer {text!r} is not one token of {model.name} after {shortened(prompt.text, end=True)}: choose an "
            "answer of one token"
        )
    return int(full[-1])


def _token(prompt: PromptPair, tokens: Tokens, role: str) -> int:
    """Return the index of the last token that covers a role's characters."""
    try:
        return tokens.span(*prompt.roles[role])[-1]
    except ProbeError as error:
        raise UsageError(f"the role {role!r} of {shortened(prompt.clean, end=True)} has no token: {error}") from None
