"""How does a model answer if attention moves from some keys to others? The sources keep a share, the recipients gain.

With S the sources, R the recipients, m_S and m_R the sums of a row's weights on them, and gamma the share that is kept,

    p'_ij = gamma p_ij  on S,    p'_ij = p_ij (1 + (1 - gamma) m_S / m_R)  on R,    p'_ij = p_ij  elsewhere,

so every row keeps its sum, and lse its value. In Yu et al. 2024 R is the complement of S; in Kang et al. 2025 it is a
part of the complement. A row without mass on S or without mass on R is not changed.

Each of the two masses is summed over its keys. m_R = 1 - m_S would lose all its digits in rows whose sources hold
nearly all of the weight, which are the rows that change most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.interventions.base import OnHeads
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern
from probe.kernels.contract import Request
from probe.kernels.edits import Reweighting


@dataclass(frozen=True)
class Redistribute(OnHeads):
    """Move attention away from the positions `sources`: the share `kept` stays there, the rest goes to `recipients`.

    recipients: positions; None is every other key. queries: the positions whose rows are edited; None is every row.
    Positions count padding.
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
            raise UsageError(f"sources and recipients must not share a position, got {sorted(shared)} in both")

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
    """Move attention of these heads from sources to recipients, [batch or 1, heads or 1, keys] bool without overlap.

    kept: the share that stays on the sources. rows: [queries] bool, the rows to edit; None is all.
    """
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
    """Return the log of the factors of sources and recipients, [..., 2] float64, from their masses [..., 2]."""
    of_sources, of_recipients = mass.double().unbind(-1)
    possible = (of_sources > 0) & (of_recipients > 0)  # false for the NaN of a row that sees nothing
    gain = torch.log1p((1 - kept) * of_sources / of_recipients.clamp(min=torch.finfo(torch.float64).tiny))
    factors = torch.stack([torch.full_like(gain, kept).log(), gain], -1)
    return factors.masked_fill(~possible[..., None], 0)


def at_positions(call: AttentionCall, positions: Sequence[int], name: str) -> Tensor:
    """Return [1, 1, keys] bool, True for the keys at these positions. Raises UsageError for one beyond the prompt."""
    if call.queries.start == 0 and max(positions) >= call.keys.stop:
        raise UsageError(f"{name} must lie in the prompt's positions 0..{call.keys.stop - 1}, got {max(positions)}")
    return among(positions, call.keys, call.key.device)[None, None]


def among(positions: Sequence[int], span: range, device: torch.device) -> Tensor:
    """Return [len(span)] bool, True where the span has one of the positions."""
    found = torch.zeros(len(span), dtype=torch.bool, device=device)
    found[[position - span.start for position in positions if position in span]] = True
    return found


def check_kept(name: str, kept: float) -> None:
    """Raise UsageError unless `kept` is a share from 0 to 1."""
    if not 0 <= kept <= 1:
        raise UsageError(f"{name} must be a share from 0 to 1, got {kept}")
