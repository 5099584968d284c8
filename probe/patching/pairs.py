"""Pairs of prompts: a clean one, a corrupted one of as many tokens, and the answers that tell the two apart.

Everything that patches runs on these: values of the corrupted run enter the clean run, and the logit difference at END,
the last token of the prompt, says what they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import ProbeError, UsageError
from probe.tokens import Tokens, ids_hash, padded

if TYPE_CHECKING:
    from probe.models import Model


@dataclass(frozen=True)
class PromptPair:
    """One clean and one corrupted prompt as text.

    good, bad: the answers as they follow the prompt, " Mary"; each is one token. choices: all answers in question, good
    first.
    roles: characters [start, end) of the clean prompt by name ("S2"); the last token that covers them has the role.
    group: what an average over other prompts may mix with, such as the template's name.
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
    """Pairs as ids on the CPU, padded on the left, so that END is the last column.

    clean, corrupted: [prompts, tokens]. padding: [prompts, tokens], True for tokens; None where all are as long.
    good, bad: [prompts] ids of the answers. choices: [prompts, choices], or None. roles: [prompts] columns by name.
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
        """The column of END."""
        return self.clean.shape[1] - 1

    def hashes(self) -> list[str]:
        """What tells one pair from another, both prompts of each."""
        return [ids_hash(torch.cat(sides)) for sides in zip(self.clean, self.corrupted, strict=True)]

    def take(self, rows: Sequence[int] | Tensor) -> Pairs:
        """Some of the pairs, by index or mask, without the padding that none of them needs."""
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
        """Rows and pairs of at most `size` each, those of like length together."""
        lengths = torch.full((len(self),), self.clean.shape[1]) if self.padding is None else self.padding.sum(1)
        for rows in lengths.argsort(stable=True).split(size):
            yield rows, self.take(rows)

    def logit_difference(self, logits: Tensor) -> Tensor:
        """logit(good) - logit(bad) at END, [prompts], of logits [prompts, vocab] or [prompts, tokens, vocab]."""
        end = logits[:, -1] if logits.ndim == 3 else logits
        good, bad = (ids.to(end.device)[:, None] for ids in (self.good, self.bad))
        return (end.gather(1, good) - end.gather(1, bad))[:, 0]


def pairs(model: Model, prompts: Sequence[PromptPair], *, bos: bool | None = None) -> Pairs:
    """The pairs as ids. Raises UsageError, naming the prompt, where lengths differ or an answer is not one token."""
    if not prompts:
        raise UsageError("expected at least one pair of prompts, got none")
    clean = [model.tokens(prompt.clean, bos=bos) for prompt in prompts]
    corrupted = [model.tokens(prompt.corrupted, bos=bos) for prompt in prompts]
    for prompt, one, other in zip(prompts, clean, corrupted, strict=True):
        if len(one) != len(other):
            raise UsageError(
                f"clean and corrupted prompts must have as many tokens, got {len(one)} and {len(other)}: "
                f"{_short(prompt.clean)} and {_short(prompt.corrupted)}"
            )
        if len(one) == 0:
            raise UsageError("expected prompts of at least one token, got an empty one")
        if prompt.choices and prompt.choices[0] != prompt.good:
            raise UsageError(f"choices must begin with the right answer {prompt.good!r}, got {prompt.choices}")
    ids, padding = padded([tokens.ids for tokens in clean], model.tokenizer, "left")
    others, _ = padded([tokens.ids for tokens in corrupted], model.tokenizer, "left")
    names = list(prompts[0].roles)
    if any(set(prompt.roles) != set(names) for prompt in prompts):
        raise UsageError(f"every prompt must name the roles of the first, {names}")
    columns = {
        name: torch.tensor(
            [
                _token(prompt, tokens, name) + ids.shape[1] - len(tokens)
                for prompt, tokens in zip(prompts, clean, strict=True)
            ]
        )
        for name in names
    }
    counts = {len(prompt.choices) for prompt in prompts}
    if len(counts) > 1:
        raise UsageError(f"every prompt must have as many choices, got {sorted(counts)}")
    good = [answer(model, tokens, prompt.good) for prompt, tokens in zip(prompts, clean, strict=True)]
    bad = [answer(model, tokens, prompt.bad) for prompt, tokens in zip(prompts, clean, strict=True)]
    for prompt, one, other in zip(prompts, good, bad, strict=True):
        if one == other:
            raise UsageError(f"good and bad must differ, got {prompt.good!r} for both after {_short(prompt.clean)}")
    return Pairs(
        clean=ids,
        corrupted=others,
        padding=padding,
        good=torch.tensor(good),
        bad=torch.tensor(bad),
        choices=None
        if counts == {0}
        else torch.tensor(
            [
                [answer(model, tokens, choice) for choice in prompt.choices]
                for prompt, tokens in zip(prompts, clean, strict=True)
            ]
        ),
        roles=columns,
        groups=tuple(prompt.group for prompt in prompts),
    )


def answer(model: Model, prompt: Tokens, text: str) -> int:
    """The id of the one token by which `text` follows the prompt. Raises UsageError where it takes several."""
    full = model.tokens(prompt.text + text, bos=prompt.bos).ids
    if len(full) != len(prompt) + 1 or not bool((full[: len(prompt)] == prompt.ids).all()):
        raise UsageError(f"the answer {text!r} is not one token of {model.name} after {_short(prompt.text)}")
    return int(full[-1])


def _token(prompt: PromptPair, tokens: Tokens, role: str) -> int:
    """The index of the last token that covers a role's characters."""
    try:
        return tokens.span(*prompt.roles[role])[-1]
    except ProbeError as error:
        raise UsageError(f"the role {role!r} of {_short(prompt.clean)}: {error}") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else "..." + text[-57:])
