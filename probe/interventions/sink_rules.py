"""Which tokens are attention sinks of a head? Those whose column mean exceeds a threshold, by one of three rules.

The column mean of key j is c_j = (1 / rows_j) sum_i p_ij over the counted queries i >= j, whose number is rows_j. These
are the kernels' `received` and `received_rows` over a band with lo = 0. In a whole prompt of N tokens rows_j = N - j,
and sum_j (N - j) c_j = N, because every row sums to one. The rules, with t for the threshold:

    absolute             c_j > t        (ACT's released code, t = 0.1; Gu et al. 2024 count with t = 0.3)
    alpha_over_n         c_j > t / N    (ACT, Yu et al. 2024, t = 5; N counted queries)
    alpha_times_uniform  c_j > t u_j    u_j is the column mean of a head that attends evenly to all that it sees

Early columns are large under any attention: u_j is about ln(N / j) / (N - j). With t = 5, alpha_over_n therefore calls
the columns j < N / 148 of a head with uniform attention sinks, and alpha_times_uniform does not. Columns with few rows
are means over a small sample, which `min_rows` leaves out.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from probe.errors import UsageError

Rule = Literal["absolute", "alpha_over_n", "alpha_times_uniform"]
RULES: tuple[Rule, ...] = get_args(Rule)
THRESHOLDS: dict[Rule, float] = {"absolute": 0.1, "alpha_over_n": 5.0, "alpha_times_uniform": 5.0}
"""The default threshold of each rule: the released code's for the first, the paper's for the other two."""


def sinks(
    column_means: Tensor,
    rows: Tensor,
    *,
    rule: Rule = "alpha_over_n",
    threshold: float | None = None,
    min_rows: int = 1,
    real: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Return whether each key is a sink: column means [..., keys] and their row counts [..., keys] -> bool [..., keys].

    threshold: None takes the rule's from THRESHOLDS. min_rows: smallest number of rows that a column must be a mean
    over. real: [..., keys] bool, False for padding, which is never a sink. window: number of keys that each query sees
    under sliding-window attention, itself included; it matters to "alpha_times_uniform" only. `rows` and `real`
    broadcast against the column means. A column without a row (NaN) is no sink.
    Raises UsageError for an unknown rule, a threshold that is not positive, or min_rows below 1.
    """
    if rule not in RULES:
        raise UsageError(f"the sink rule must be one of {', '.join(RULES)}, got {rule!r}")
    level = THRESHOLDS[rule] if threshold is None else threshold
    if not level > 0:
        raise UsageError(f"the sink threshold must be above 0, got {level}")
    if min_rows < 1:
        raise UsageError(f"min_rows must be at least 1, got {min_rows}")
    if rule == "absolute":
        bar = torch.full((), level, dtype=column_means.dtype, device=column_means.device)
    elif rule == "alpha_over_n":
        bar = level / rows.amax(-1, keepdim=True).clamp(min=1)
    else:
        bar = level * uniform_column_means(rows, real=real, window=window)
    found = (column_means > bar) & (rows >= min_rows)
    return found if real is None else found & real


def uniform_column_means(rows: Tensor, *, real: Tensor | None = None, window: int | None = None) -> Tensor:
    """Return the column means of even attention to every visible key: row counts [..., keys] -> [..., keys] float64.

    u_j = (1 / rows_j) sum_i 1 / (keys that query i sees) over the counted queries i >= j that see key j. Query i is
    counted if rows_i exceeds rows_{i+1}. The result is NaN where rows_j is 0.
    """
    if window is not None and window < 1:
        raise UsageError(f"window must be at least 1 key, got {window}")
    counts = rows.double()
    after = torch.cat([counts[..., 1:], torch.zeros_like(counts[..., :1])], -1)
    visible = (torch.ones_like(counts) if real is None else real.double()).cumsum(-1)
    if window is not None:
        visible = visible.clamp(max=window)
    weights = (counts - after) / visible.clamp(min=1)
    before = torch.cat([torch.zeros_like(weights[..., :1]), weights.cumsum(-1)], -1)  # sum over the queries below i
    keys = torch.arange(counts.shape[-1], device=rows.device)
    last = (keys + (window or len(keys))).clamp(max=len(keys))
    return (before[..., last] - before[..., :-1]) / counts


def initial(column_means: Tensor, *, real: Tensor | None = None) -> Tensor:
    """Return bool [..., keys], True at the initial token: the first key that is not padding."""
    seen = torch.ones_like(column_means, dtype=torch.bool) if real is None else real.expand_as(column_means)
    return seen & (seen.cumsum(-1) == 1)
