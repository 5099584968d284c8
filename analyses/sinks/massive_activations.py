"""Massive activations: the few numbers in the residual stream that are thousands of times larger than the rest.

An activation is massive when |x| > 100 and |x| > 1000 times the median |x| of its layer (Sun, Chen, Kolter, Liu:
Massive Activations in Large Language Models, 2024, section 2). Dimensions and tokens are found, not assumed.

    phi(x) = max over d in D of |x_d| / RMS(x)     (Kang et al., ICLR 2025, D the dimensions found)

tells a sink token by its stream; it is at most sqrt(hidden size), so no threshold carries from one model to another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST, RATIO = 100.0, 1000.0
"""Sun et al.'s thresholds: of |x|, and of |x| over the layer's median |x|."""


def massive(stream: Tensor, *, least: float = LEAST, ratio: float = RATIO) -> tuple[Tensor, float]:
    """Which activations are massive, and the median |x|: [tokens, hidden] -> bool [tokens, hidden], float."""
    if stream.ndim != 2:
        raise ValueError(f"stream must be [tokens, hidden], got {list(stream.shape)}")
    size = stream.float().abs()
    median = float(size.median())
    return (size > least) & (size > ratio * median), median


def phi(stream: Tensor, dims: Sequence[int], *, eps: float = 1e-6) -> Tensor:
    """max over `dims` of |x_d| / RMS(x): [..., hidden] -> [...], 0 .. sqrt(hidden); RMS without weights."""
    if not dims:
        raise ValueError("phi needs at least one dimension, got none")
    states = stream.float()
    rms = (states.square().mean(-1) + eps).sqrt()
    return states[..., list(dims)].abs().amax(-1) / rms


def steps(values: Tensor) -> Tensor:
    """What each sub-block added: the stream after each, [places, dims] -> [places, dims].

    The first row counts from 0, so it holds the embedding too.
    """
    return torch.cat([values[:1], values[1:] - values[:-1]])


def writer(values: Tensor) -> int:
    """The place where |x| of one dimension grows most: the stream after each sub-block, [places] -> index."""
    size = values.abs()
    return int(torch.cat([size[:1], size[1:] - size[:-1]]).argmax())
