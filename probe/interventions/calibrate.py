"""Does a model answer better if attention sinks in the middle of its prompt give up their attention? ACT tries it.

A sink is a key that receives much attention whatever the query. Attention calibration (Yu et al. 2024, ICML) works for
each head and each prompt separately:

1. Key j is a sink if its column mean c_j = (1 / (N - j)) sum_{i >= j} p_ij exceeds a threshold, with N tokens in the
   prompt and p_ij the weight of query i on key j (`sink_rules`).
2. In every row, the sinks keep a share beta of their weight, and the other keys get the rest in proportion to their
   weights (`redistribution`). The first token, itself a sink, is spared.

The released code differs from the paper:
threshold  0.1 at any length, instead of alpha / N with alpha = 5.
spare      the first key that the rule flags, instead of the first token. If the first token is no sink, a later one is
           spared.
decoding   the code detects sinks in every one-row map again, and rows then sum to more than one. Both presets here
           detect them once, in the prompt, and keep them while decoding.

The sinks of a row depend on the rows after it, so an edited run says nothing about the likelihood of the tokens of the
prompt. Score the tokens that follow the prompt, or detect the sinks in a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import pad

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention, OnHeads
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern
from probe.interventions.redistribution import check_kept, redistribute
from probe.interventions.sink_rules import RULES, Rule, initial, sinks
from probe.kernels.contract import Band, Request


@dataclass(frozen=True)
class CalibrateSinks(OnHeads):
    """Calibrate the sinks of these heads by the paper's rules; `CalibrateSinks.release(heads)` has the released code's.

    beta: the share of their weight that sinks keep. rule, threshold, min_rows: which keys are sinks (`sink_rules`).
    spare: the key that is never calibrated, the first token of the text or the first key that the rule flags.
    prefix: number of first positions in which sinks are detected; None takes the whole prompt.
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
        """Return ACT as its released code (github.com/GATECH-EIC/ACT) does it in a prompt, with `changes` of fields."""
        return cls(heads, **{"rule": "absolute", "threshold": 0.1, "spare": "first flagged"} | changes)

    def running(self) -> Intervention:
        """Return the intervention that remembers the sinks of one prompt."""
        return _Calibrating(self)

    def find(self, call: AttentionCall, pattern: Pattern, heads: Sequence[int]) -> Tensor:
        """Return the sinks to calibrate among the keys of a prompt, [batch, len(heads), keys] bool.

        Raises UsageError for a prompt that is shorter than `prefix`, or too short to detect sinks in.
        """
        length = len(call.keys)
        if self.prefix is not None and self.prefix > length:
            raise UsageError(f"prefix is {self.prefix} positions and the prompt has {length}: take a shorter prefix")
        found = pattern.look(heads, Request(received=Band(stop=self.prefix)))
        assert found.received is not None and found.received_rows is not None
        rows = found.received_rows if call.mask.keys is None else found.received_rows * call.mask.keys
        shortest = int(rows.amax(-1).min())
        if shortest < max(self.min_rows, 2):
            raise UsageError(
                f"the prompt has {shortest} tokens, too few to detect sinks with min_rows={self.min_rows}: "
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
    """The sinks that were detected in the prompt, by layer: [batch, heads, positions]."""

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
                "CalibrateSinks detects its sinks in the prompt and this pass starts at position "
                f"{call.queries.start}: run the prompt inside the same context"
            )
        sinks_here = self.found[call.layer][..., call.keys.start :]
        sinks_here = pad(sinks_here, (0, max(0, len(call.keys) - sinks_here.shape[-1])))[..., : len(call.keys)]
        touched = sinks_here.flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()
        if touched:
            sources = sinks_here[:, touched]
            redistribute(pattern, [heads[place] for place in touched], sources, ~sources, kept=self.settings.beta)
