"""Settings of `probe sinks`: the texts, the rule for later sinks, and the thresholds of the papers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from probe.errors import UsageError
from probe.frame.settings import Settings as Base
from probe.frame.settings import given, setting

if TYPE_CHECKING:
    from probe.analyses.sinks.texts import Prose

EPSILON = 0.3
"""The column mean above which a head counts in the sink rate (Gu et al. 2024, released code)."""
MIN_MAGNITUDE, MIN_RATIO = 100.0, 1000.0
"""Sun et al.'s thresholds of a massive activation: of |x|, and of |x| over the layer's median |x|."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """Which tokens are attention sinks, which massive activations stand behind them, and what are these for?

    The command measures how much attention every head gives to the first token, which later tokens are sinks (tokens
    that receive much attention whatever the query), and which dimensions of the residual stream hold massive
    activations (numbers thousands of times larger than the rest). Then it sets the largest massive dimension of the
    first token to zero, and to its mean over the other texts, beside control dimensions, and measures the loss and the
    attention. It prints tables by layer, head, token and condition, and the claims of the papers with a verdict each.
    """

    presets: ClassVar = {"quick": {"max_tokens": 128, "randoms": 1}, "report": {}}

    prompt: tuple[str, ...] = setting(
        (), "A text to look for sinks in, given here", metavar="TEXT", shown="four short texts that come with probe"
    )
    prompt_file: tuple[Path, ...] = setting((), "A file whose whole content is one text to look for sinks in")
    prose: tuple[Prose, ...] | None = given("Texts to read instead: `Prose(name, text)` objects")
    max_tokens: int | None = setting(
        None, "Number of tokens of each text to read", least=2, metavar="N", shown="the whole text"
    )
    rule: str = setting(
        "absolute",
        "Rule for later sinks: a token is a sink of a head if its column mean exceeds the threshold (absolute), the "
        "threshold over the number of tokens (alpha-over-n), or the threshold times the column mean of even attention "
        "(alpha-times-uniform)",
        choices=("absolute", "alpha-over-n", "alpha-times-uniform"),
    )
    threshold: float | None = setting(None, "Threshold of the rule", above=0, shown="0.1 for absolute, otherwise 5")
    min_rows: int = setting(
        16, "Smallest number of queries that a column mean must be over; shorter columns are noise", least=1
    )
    epsilon: float = setting(
        EPSILON, "Column mean of the first token above which a head counts in the sink rate", above=0
    )
    min_magnitude: float = setting(MIN_MAGNITUDE, "Smallest |x| that counts as a massive activation", above=0)
    min_ratio: float = setting(
        MIN_RATIO, "Smallest ratio of |x| to the median |x| of its layer that counts as a massive activation", above=0
    )
    randoms: int = setting(3, "Number of random dimensions to set to zero as controls", least=1)

    def check(self) -> None:
        """Refuse two sources of texts, and an empty one."""
        if self.prose is not None and (self.prompt or self.prompt_file or not self.prose):
            raise UsageError(
                f"prose: expected at least one text, and neither --prompt nor --prompt-file, got {len(self.prose)}"
            )
