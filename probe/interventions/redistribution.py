"""Attention moved from some keys to others: the sources keep a share of theirs, the recipients get the rest.

With S the sources, R the recipients, m the mass of a row on them and gamma the share that is kept,

    p'_ij = gamma p_ij  on S,    p'_ij = p_ij (1 + (1 - gamma) m_S / m_R)  on R,    p'_ij = p_ij  elsewhere,

so rows keep their sum and lse its value (Yu et al. 2024 with R the complement of S; Kang et al. 2025 with R a part of
it). Both masses are summed over their own keys: m_R = 1 - m_S would lose all its digits in the rows that matter most,
those whose sources hold nearly everything. A row without mass on either side is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.interventions.base import AttentionCall, OnHeads
from probe.interventions.pattern import Pattern
from probe.kernels.contract import Request
from probe.kernels.edits import Reweighting


@dataclass(frozen=True)
class Redistribute(OnHeads):
    """Move attention away from the positions `sources`: of theirs, `kept` stays and the rest goes to `recipients`.

    recipients None is every other key. queries None is every row, else the positions whose rows are edited. Positions
    count padding.
    """

    sources: Sequence[int]
    recipients: Sequence[int] | None = None
    kept: float = 0.0
    queries: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sources", "recipients", "queries"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
                if not value or min(value) < 0:
                    raise UsageError(f"{name} must be positions from 0 on, got {list(value)}")
        check_kept("kept", self.kept)
        if shared := set(self.sources) & set(self.recipients or ()):
            raise UsageError(f"a key cannot be source and recipient, got {sorted(shared)} in both")

    def repattern(self, call: AttentionCall, pattern: Pattern) -> None:
        heads = self.heads_in(call.layer)
        if not heads:
            return
        sources = at_positions(call, self.sources, "sources")
        recipients = ~sources if self.recipients is None else at_positions(call, self.recipients, "recipients")
        rows = None if self.queries is None else among(self.queries, call.queries, call.query.device)
        redistribute(pattern, heads, sources, recipients, kept=self.kept, rows=rows)


def redistribute(
    pattern: Pattern,
    heads: Sequence[int],
    sources: Tensor,
    recipients: Tensor,
    *,
    kept: float,
    rows: Tensor | None = None,
) -> None:
    """Edit these heads: sources and recipients [batch or 1, heads or 1, keys] bool, disjoint; rows [queries] bool."""
    if kept == 1 or not sources.any() or (rows is not None and not rows.any()):
        return
    sets = torch.stack([sources, recipients], 2)
    mass = pattern.look(heads, Request(sets=sets)).mass
    assert mass is not None
    log = log_factors(mass, kept=kept)
    if rows is not None:
        log = log.masked_fill(~rows[:, None], 0)
    pattern.edit(heads, Reweighting(sets, log.to(torch.float32)))


def log_factors(mass: Tensor, *, kept: float) -> Tensor:
    """Log of the factors of sources and recipients, [..., 2] float64, from their masses [..., 2]."""
    of_sources, of_recipients = mass.double().unbind(-1)
    possible = (of_sources > 0) & (of_recipients > 0)  # false for the NaN of a row that sees nothing
    gain = torch.log1p((1 - kept) * of_sources / of_recipients.clamp(min=torch.finfo(torch.float64).tiny))
    factors = torch.stack([torch.full_like(gain, kept).log(), gain], -1)
    return factors.masked_fill(~possible[..., None], 0)


def at_positions(call: AttentionCall, positions: Sequence[int], name: str) -> Tensor:
    """[1, 1, keys] bool, True for the keys at these positions. Raises UsageError for one beyond the prompt."""
    if call.queries.start == 0 and max(positions) >= call.keys.stop:
        raise UsageError(f"{name}: the prompt has positions 0..{call.keys.stop - 1}, got {max(positions)}")
    return among(positions, call.keys, call.key.device)[None, None]


def among(positions: Sequence[int], span: range, device: torch.device) -> Tensor:
    """[len(span)] bool, True where the span has one of the positions."""
    found = torch.zeros(len(span), dtype=torch.bool, device=device)
    found[[position - span.start for position in positions if position in span]] = True
    return found


def check_kept(name: str, kept: float) -> None:
    """Raises UsageError unless it is a share."""
    if not 0 <= kept <= 1:
        raise UsageError(f"{name} must be a share from 0 to 1, got {kept}")
