"""What a sink analysis is asked for: texts, rules and thresholds, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probe.analyses.sinks.massive_activations import LEAST, RATIO
from probe.analyses.sinks.statistics import EPSILON
from probe.analyses.sinks.texts import TEXTS, Prose
from probe.errors import UsageError
from probe.interventions.sink_rules import THRESHOLDS, Rule, sinks
from probe.saving.old_runs import config_of

if TYPE_CHECKING:
    from probe.models import Model
    from probe.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `sinks.run`, checked; `config` decides the run folder."""

    texts: tuple[Prose, ...] = TEXTS
    rule: Rule = "absolute"
    threshold: float | None = None
    min_rows: int = 16
    epsilon: float = EPSILON
    least: float = LEAST
    ratio: float = RATIO
    randoms: int = 3
    seed: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise UsageError("expected at least one text, got none")
        if self.randoms < 1 or not self.epsilon > 0 or not self.least > 0 or not self.ratio > 0:
            raise UsageError("expected randoms of at least 1 and epsilon, least and ratio above 0")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UsageError(f"--max-tokens: expected at least 2, got {self.max_tokens}")
        one = torch.ones(1)
        sinks(one, one, rule=self.rule, threshold=self.threshold, min_rows=self.min_rows)

    @property
    def level(self) -> float:
        """The rule's threshold."""
        return THRESHOLDS[self.rule] if self.threshold is None else self.threshold

    def config(self) -> dict[str, Any]:
        """What decides the numbers, as JSON."""
        return {
            "texts": [{"name": each.name, "text": each.text} for each in self.texts],
            "rule": self.rule,
            "threshold": self.level,
            "min_rows": self.min_rows,
            "epsilon": self.epsilon,
            "least": self.least,
            "ratio": self.ratio,
            "randoms": self.randoms,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }

    def prompts(self, model: Model) -> list[Tokens]:
        """The texts as tokens, cut at `max_tokens`.

        Raises UsageError for a text of fewer than two tokens or one beyond the context.
        """
        return [_tokens(model, each, self.max_tokens) for each in self.texts]


def run_config(model: Model, settings: Settings) -> dict[str, Any]:
    """What a run folder must have been made with to be continued."""
    return config_of(model, "sinks", settings.config())


def _tokens(model: Model, prose: Prose, limit: int | None) -> Tokens:
    tokens = model.tokens(prose.text)
    if limit is not None and len(tokens) > limit:
        tokens = model.tokens(prose.text[: tokens.offsets[limit - 1][1]])
    if len(tokens) < 2:
        raise UsageError(f"expected texts of at least 2 tokens, got {prose.name} with {len(tokens)}")
    if len(tokens) > model.context:
        raise UsageError(
            f"{prose.name} has {len(tokens)} tokens and {model.name} {model.context} positions: give --max-tokens"
        )
    return tokens
