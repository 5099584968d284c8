"""How far do two score maps agree, head by head? Correlations, and shared top heads beside chance, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.frame.findings import Estimate
from probe.heads import Head


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's r with its 95 % interval (percentile bootstrap over heads) and Spearman's rho, over `heads` heads.

    All are NaN where fewer than three heads have both scores, or one score is the same everywhere.
    """

    pearson: float
    low: float
    high: float
    spearman: float
    heads: int


@dataclass(frozen=True, slots=True)
class SharedTop:
    """The heads among the top k of both maps, best in the first map first.

    expected: how many two random lists share. chance: the probability that two random lists share this number or more.
    """

    heads: tuple[Head, ...]
    k: int
    expected: float
    chance: float


def correlate(a: Tensor, b: Tensor, *, draws: int = 2000, seed: int = 0) -> Correlation:
    """Return the correlation of two maps [layers, heads] over the heads that have both scores (NaN is none)."""
    x, y = _both(a, b)
    found = _resampled(pearson, x, y, draws=draws, seed=seed)
    rho = float(_rho(x, y)) if len(x) > 2 else torch.nan
    return Correlation(found.value, found.low, found.high, spearman=rho, heads=len(x))


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's r over the last axis: [..., n], [..., n] -> [...], NaN where either does not vary."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.pow(2).sum(-1) * y.pow(2).sum(-1)).sqrt()


def ranks(values: Tensor) -> Tensor:
    """Return the ranks 1..n, ascending, along the last axis; equal values share the mean of their ranks. float64."""
    ordered = values.sort(-1).values
    first, last = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (first + last + 1).double() / 2


def spearman(x: Tensor, y: Tensor, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Return Spearman's rho of two scores with its 95 % percentile bootstrap interval: [heads], [heads] -> Estimate.

    It is NaN for fewer than three heads, and for a score that is the same everywhere.
    """
    return _resampled(_rho, x, y, draws=draws, seed=seed)


def _rho(x: Tensor, y: Tensor) -> Tensor:
    return pearson(ranks(x), ranks(y))


def _resampled(r: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, draws: int, seed: int) -> Estimate:
    """Return a correlation with its interval; a draw of one head only has none, and does not count."""
    if len(x) < 3:
        return Estimate(torch.nan, n=len(x))
    picks = torch.randint(len(x), (draws, len(x)), generator=torch.Generator().manual_seed(seed))
    bounds = r(x[picks], y[picks]).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(r(x, y)), *bounds, n=len(x))


def top_heads(score: Tensor, k: int) -> list[Head]:
    """Return the k best heads of a map [layers, heads], best first; ties by layer, then head; NaN is no score."""
    flat = score.flatten().double()
    order = flat.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
    return [Head(*divmod(index, score.shape[1])) for index in order if not flat[index].isnan()][:k]


def shared_top(a: Tensor, b: Tensor, k: int) -> SharedTop:
    """Return the heads among the k best of both maps [layers, heads], and what chance gives (hypergeometric)."""
    x, _ = _both(a, b)
    if not 1 <= k <= len(x):
        raise UsageError(f"k must be 1..{len(x)}, the heads that have both scores, got {k}")
    missing = a.isnan() | b.isnan()
    first = top_heads(a.masked_fill(missing, torch.nan), k)
    second = set(top_heads(b.masked_fill(missing, torch.nan), k))
    shared = tuple(head for head in first if head in second)
    return SharedTop(shared, k, expected=k * k / len(x), chance=_at_least(len(shared), k, len(x)))


def _both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of the heads that have both, float64."""
    if a.ndim != 2 or a.shape != b.shape:
        raise UsageError(
            f"expected two maps of the same layers x heads, got {' x '.join(map(str, a.shape))} and "
            f"{' x '.join(map(str, b.shape))}: heads are compared one to one"
        )
    present = ~(a.isnan() | b.isnan())
    return a[present].double(), b[present].double()


def _at_least(shared: int, k: int, heads: int) -> float:
    """Return the probability that two random k-subsets of `heads` share `shared` or more."""
    ways = sum(comb(k, x) * comb(heads - k, k - x) for x in range(shared, k + 1))
    return ways / comb(heads, k)
