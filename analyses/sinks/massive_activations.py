"""Massive activations: the few numbers in the residual stream that are thousands of times larger than the rest.

An activation is massive when |x| > 100 and |x| > 1000 times the median |x| of its layer (Sun, Chen, Kolter, Liu:
Massive Activations in Large Language Models, 2024). Dimensions and tokens are measured, not assumed.

    phi(x) = max over d in D of |x_d| / RMS(x)     (Kang et al., ICLR 2025, with D the massive dimensions)

says how far these dimensions stand out in a token's stream, and so tells a sink token without its attention. It is at
most sqrt(hidden size), so a threshold of one model does not apply to another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probe.analyses.sinks.settings import MIN_MAGNITUDE, MIN_RATIO


def massive(
    stream: Tensor, *, min_magnitude: float = MIN_MAGNITUDE, min_ratio: float = MIN_RATIO
) -> tuple[Tensor, float]:
    """Return which activations are massive, and the median |x|: [tokens, hidden] -> bool [tokens, hidden], float."""
    if stream.ndim != 2:
        raise ValueError(f"stream must be [tokens, hidden], got {list(stream.shape)}")
    size = stream.float().abs()
    median = float(size.median())
    return (size > min_magnitude) & (size > min_ratio * median), median


def phi(stream: Tensor, dims: Sequence[int], *, eps: float = 1e-6) -> Tensor:
    """Return max over `dims` of |x_d| / RMS(x): [..., hidden] -> [...], 0 .. sqrt(hidden); RMS without weights."""
    if not dims:
        raise ValueError("phi needs at least one dimension, got none")
    states = stream.float()
    rms = (states.square().mean(-1) + eps).sqrt()
    return states[..., list(dims)].abs().amax(-1) / rms


def steps(values: Tensor) -> Tensor:
    """Return what each sub-block added to the stream: the stream after each, [places, dims] -> [places, dims].

    The first row counts from 0, so it includes the embedding.
    """
    return torch.cat([values[:1], values[1:] - values[:-1]])


def writer(values: Tensor) -> int:
    """Return the place where |x| of a dimension grows most: its stream after each sub-block, [places] -> index."""
    return int(steps(values.abs()).argmax())
