"""The three means of an attention statistic: over the queries of a unit, the units of a text, and the texts.

    unit   m_u = (1 / n_u) sum of s(i) over the n_u queries of u, with m_u -+ t(n_u - 1) d_u / sqrt(n_u)
    text   m_t = (1 / k) sum of m_u over the k units of the text that have the same label
    head   m   = (1 / T) sum of m_t over the T texts that have such a unit, with the percentile bootstrap over texts

d_u is the sample standard deviation, t(f) the 97.5 % quantile of Student's distribution with f degrees of freedom. The
queries of a unit depend on one another (they read nearly the same keys), so the first interval describes their spread
and tests nothing. Texts are independent; compare heads by the last interval.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from probe.analyses.measures.intervals import bootstrap_mean


def over_queries(values: Tensor, owner: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over each unit's queries: [..., queries] -> two [units, ...] float32.

    owner: the unit of each query, -1 for a query of none, [queries]. One query has no deviation: it is NaN.
    """
    inside = owner >= 0
    values, owner = values[..., inside].double(), owner[inside]
    count = torch.bincount(owner, minlength=units).double()

    def sums(of: Tensor) -> Tensor:
        return of.new_zeros(*of.shape[:-1], units).index_add_(-1, owner, of)

    mean = sums(values) / count
    deviation = (sums((values - mean[..., owner]) ** 2) / (count - 1)).sqrt()
    return mean.movedim(-1, 0).float().contiguous(), deviation.movedim(-1, 0).float().contiguous()


def student(deviation: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return half the width of the 95 % interval of means over this number of queries; NaN for one query."""
    from scipy.special import stdtrit

    with np.errstate(invalid="ignore"):
        return stdtrit(np.maximum(queries - 1, 1), 0.975) * deviation / np.sqrt(queries)


def over_units(means: Tensor, text: Tensor, texts: int) -> Tensor:
    """Return the mean of each text's units: means [units, ...], text [units] -> [texts, ...] float64, NaN for none."""
    total = torch.zeros(texts, *means.shape[1:], dtype=torch.float64).index_add_(0, text, means.double())
    count = torch.bincount(text, minlength=texts).double()
    return total / count.reshape(-1, *[1] * (means.ndim - 1))


def over_texts(means: Tensor, *, seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return mean, low, high and the number of texts that have a value: [texts, ...] -> three [...] float64."""
    present = means[~means.flatten(1).isnan().all(1)]
    low, high = bootstrap_mean(present, seed=seed)
    return present.mean(0), low, high, len(present)
