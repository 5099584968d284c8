"""A task: prompts in pairs, and what is worth knowing of how they were made."""

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

    options: what was asked for ("order": "mixed"). facts: what came of it for this tokenizer, such as the names that
    were dropped because they take several tokens. Both hold what JSON holds.
    """

    name: str
    prompts: tuple[PromptPair, ...]
    seed: int
    options: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def pairs(self, model: Model, *, bos: bool | None = None) -> Pairs:
        """The prompts as ids of a model. Raises UsageError where its tokenizer does not fit them."""
        return pairs(model, self.prompts, bos=bos)
