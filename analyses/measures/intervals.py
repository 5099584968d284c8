"""Confidence intervals: Wilson's for a share of successes, the percentile bootstrap for a mean over samples."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from probe.frame.findings import Estimate

LEAST_SAMPLES = 3
"""Fewer samples than these give an estimate no interval: resampling two values says little about their spread."""
CHUNK = 2**24  # numbers held at once while resampling, 128 MB in float64


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high) of the success probability. Wilson's score interval (1927); without trials it is (0, 1)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be 0..{trials} (trials), got {successes}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_mean(values: Tensor, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (low, high) of the mean over the first axis: [samples, ...] -> two [...] in the units of `values`,
    float64.

    Percentile bootstrap. All columns share the resampled indices, so intervals of two heads come from the same draws.
    One sample says nothing about the spread: both bounds are then NaN.
    """
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"values must be [samples >= 1, ...], got {list(values.shape)}")
    samples, rest = values.shape[0], values.shape[1:]
    if samples == 1:
        nothing = torch.full(rest, torch.nan, dtype=torch.float64)
        return nothing, nothing.clone()
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(samples, (draws, samples), generator=generator)
    times = torch.zeros(draws, samples, dtype=torch.float64)
    times.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    columns = values.detach().cpu().double().flatten(1) if rest else values.detach().cpu().double()[:, None]
    pieces = []
    for piece in columns.split(max(1, CHUNK // draws), dim=1):
        means = times @ piece / samples
        pieces.append(means.quantile(bounds, dim=0))
    low, high = torch.cat(pieces, dim=1).reshape(2, *rest)
    return low, high


def mean_estimate(values: Tensor, *, seed: int = 0) -> Estimate:
    """Return the mean over samples with its bootstrap interval: [samples] -> Estimate, NaN bounds for a few samples."""
    if len(values) < LEAST_SAMPLES:
        return Estimate(float(values.double().mean()), n=len(values))
    low, high = bootstrap_mean(values, seed=seed)
    return Estimate(float(values.double().mean()), float(low), float(high), n=len(values))
