"""A task: pairs of prompts, with the options that made them and what the tokenizer left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probe.patching.pairs import Pairs, PromptPair, pairs

if TYPE_CHECKING:
    from probe.models import Model


@dataclass(frozen=True)
class Task:
    """Prompts with a name. The same name, seed, options and tokenizer give the same prompts.

    options: the task's options, such as "order": "mixed". facts: what they gave with this tokenizer, such as the names
    that were dropped because they take several tokens. Both hold JSON values.
    """

    name: str
    prompts: tuple[PromptPair, ...]
    seed: int
    options: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def pairs(self, model: Model, *, bos: bool | None = None) -> Pairs:
        """Return the prompts as ids of a model. Raises UsageError where its tokenizer does not fit them."""
        return pairs(model, self.prompts, bos=bos)
