"""Attention calibration (ACT): sinks in the middle of the prompt give up most of their attention.

Yu et al. 2024 (ICML). Head by head and prompt by prompt, key j is a sink if its column mean
c_j = (1 / (N - j)) sum_{i >= j} p_ij exceeds a threshold; then the sinks S keep beta of their weight in every row and
the others get the rest in proportion (`redistribution.py`). The first token, itself a sink, is spared.

Where the released code departs from the paper:
threshold  0.1, whatever the length, instead of alpha / N with alpha = 5.
spare      the first key that is flagged, instead of the first token: where that is no sink, the first later one.
decoding   sinks are found again in every one-row map, and rows then sum to more than one. Both presets here find them
           once, in the prompt, and keep them while decoding.

The sinks of a row depend on the rows after it, so an edited run says nothing about the likelihood of the prompt's own
tokens: score what follows the prompt, or find the sinks in a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import pad

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import AttentionCall, Intervention, OnHeads
from probe.interventions.pattern import Pattern
from probe.interventions.redistribution import check_kept, redistribute
from probe.interventions.sink_rules import RULES, Rule, initial, sinks
from probe.kernels.contract import Band, Request


@dataclass(frozen=True)
class CalibrateSinks(OnHeads):
    """ACT on these heads; the defaults are the paper's, `CalibrateSinks.release(heads)` is the released code's.

    beta: the share of their weight that sinks keep. rule, threshold, min_rows: what a sink is (`sink_rules`).
    spare: what is never calibrated, the first token of the text or the first key that the rule flags.
    prefix: how many positions from the start to find sinks in, None for the whole prompt.
    """

    beta: float = 0.4
    rule: Rule = "alpha_over_n"
    threshold: float = 5.0
    min_rows: int = 1
    spare: Literal["first token", "first flagged"] = "first token"
    prefix: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kept("beta", self.beta)
        if self.rule not in RULES:
            raise UsageError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.spare not in ("first token", "first flagged"):
            raise UsageError(f"spare must be 'first token' or 'first flagged', got {self.spare!r}")
        if self.prefix is not None and self.prefix < 1:
            raise UsageError(f"prefix must be at least 1 position, got {self.prefix}")

    @classmethod
    def release(cls, heads: Sequence[Head | tuple[int, int]], **changes: Any) -> CalibrateSinks:
        """As the released code detects and edits in a prompt (github.com/GATECH-EIC/ACT), but for the `changes`."""
        return cls(heads, **{"rule": "absolute", "threshold": 0.1, "spare": "first flagged"} | changes)

    def running(self) -> Intervention:
        return _Calibrating(self)

    def find(self, call: AttentionCall, pattern: Pattern, heads: Sequence[int]) -> Tensor:
        """The sinks to calibrate among the keys of a prompt: [batch, len(heads), keys] bool. Raises UsageError."""
        length = len(call.keys)
        if self.prefix is not None and self.prefix > length:
            raise UsageError(f"prefix asks for {self.prefix} positions and the prompt has {length}: shorten it")
        found = pattern.look(heads, Request(received=Band(stop=self.prefix)))
        assert found.received is not None and found.received_rows is not None
        rows = found.received_rows if call.mask.keys is None else found.received_rows * call.mask.keys
        shortest = int(rows.amax(-1).min())
        if shortest < max(self.min_rows, 2):
            raise UsageError(
                f"the prompt has {shortest} tokens, too few to find sinks in with min_rows={self.min_rows}: "
                "take a longer prompt"
            )
        flagged = sinks(
            found.received,
            rows[:, None],
            rule=self.rule,
            threshold=self.threshold,
            min_rows=self.min_rows,
            real=None if call.mask.keys is None else call.mask.keys[:, None],
            window=call.mask.window,
        )
        if self.spare == "first token":
            return flagged & ~initial(flagged, real=(rows > 0)[:, None])
        return flagged & ~initial(flagged, real=flagged)


@dataclass(frozen=True, eq=False)
class _Calibrating(Intervention):
    """The sinks that were found in the prompt, by layer: [batch, heads, positions]."""

    settings: CalibrateSinks
    found: dict[int, Tensor] = field(default_factory=dict)

    @property
    def heads_named(self) -> tuple[Head, ...]:
        return self.settings.heads_named

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        heads = self.settings.heads_in(call.layer)
        if not heads:
            return
        if call.queries.start == 0:
            self.found[call.layer] = self.settings.find(call, pattern, heads)
        elif call.layer not in self.found:
            raise UsageError(
                "CalibrateSinks finds its sinks in the prompt and this pass starts at position "
                f"{call.queries.start}: run the prompt inside the same context"
            )
        sinks_here = self.found[call.layer][..., call.keys.start :]
        sinks_here = pad(sinks_here, (0, max(0, len(call.keys) - sinks_here.shape[-1])))[..., : len(call.keys)]
        touched = sinks_here.flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()
        if touched:
            sources = sinks_here[:, touched]
            redistribute(pattern, [heads[place] for place in touched], sources, ~sources, kept=self.settings.beta)
