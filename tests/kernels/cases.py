"""Calls of attention for hypothesis to choose from: shapes that need several blocks, every kind of mask and request."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from probe.kernels.attend import IMPLEMENTATIONS
from probe.kernels.contract import Band, Mask, Request, Scoring

# the fixtures that tests share with their examples (poisoned memory, the sampler) are the same in every example
thorough = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Every implementation that returns statistics; in Triton's interpreter a test takes seconds.
STATISTICIANS = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "triton" else [])
    for name in IMPLEMENTATIONS
    if name != "sdpa"
]
EVERY_LEAD = list(product((1, 2, 3), repeat=3))


def scored(mask: Mask = Mask(), scale: float = 0.35, softcap: float | None = None, edits=(), **options):  # noqa: B008
    """The options of an implementation, from those of `attend`."""
    return {"scoring": Scoring(mask, scale, softcap, tuple(edits)), "sinks": None, "request": Request()} | options


def everything(keys: int, **changes) -> Request:
    sets = torch.zeros(1, 1, 3, keys, dtype=torch.bool)
    sets[0, 0, 0, :2] = True
    sets[0, 0, 1, ::3] = True
    sets[0, 0, 2, 2:] = True
    defaults = {
        "lse": True,
        "entropy": True,
        "distance": True,
        "windowed_distance": 10,
        "top": min(3, keys),
        "sets": sets,
        "partial": True,
        "received": Band(),
        "pooled": (7, 5),
    }
    return Request(**defaults | changes)


@st.composite
def cases(draw, queries=(1, 2, 7, 33, 70), keys=(1, 3, 16, 65, 130), widths=(8,), value_dims=(8, 3), leads=EVERY_LEAD):
    """Any shape, mask and request; masks and sets are random tensors of a drawn seed.

    leads: the choices of (batch, KV heads, query heads of each).
    """
    batch, kv_heads, group = draw(st.sampled_from(leads))
    queries, keys = draw(st.sampled_from(queries)), draw(st.sampled_from(keys))
    heads, seed = kv_heads * group, draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)

    def some(*shape, share=0.4):
        return torch.rand(shape, generator=generator) > share

    padding = draw(st.sampled_from(["none", "none", "left", "right", "holes"]))
    length = torch.randint(0, keys + 1, (batch, 1), generator=generator)
    kept = {
        "none": None,
        "left": torch.arange(keys) >= length,
        "right": torch.arange(keys) < length,
        "holes": some(batch, keys),
    }[padding]
    pairs = draw(st.sampled_from([None, None, (1, 1), (batch, 1), (1, heads), (batch, heads)]))
    mask = Mask(
        causal=draw(st.sampled_from([True, True, True, False])),
        window=draw(st.sampled_from([None, None, 1, 6, 40, 1000])),
        keys=kept,
        pairs=None if pairs is None else some(*pairs, queries, keys),
        first_query=draw(st.sampled_from([0, keys - queries, 5, -4, 100])),
        first_key=draw(st.sampled_from([0, 0, 9])),
    )
    lo = draw(st.sampled_from([0, 0, 3, -3]))
    band = Band(
        lo=lo,
        hi=draw(st.sampled_from([None, lo, lo + 4, lo + 60])),
        start=draw(st.sampled_from([None, 8])),
        stop=draw(st.sampled_from([None, 40])),
    )
    sets = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), draw(st.sampled_from([1, 4])), keys)
    request = Request(
        lse=draw(st.booleans()),
        entropy=draw(st.booleans()),
        distance=draw(st.booleans()),
        windowed_distance=draw(st.sampled_from([None, 1, 10, 50])),
        top=min(keys, draw(st.sampled_from([0, 1, 3, 70]))),
        sets=draw(st.sampled_from([None, some(*sets, share=0.9), some(*sets, share=0.3)])),
        received=draw(st.sampled_from([None, band])),
        pooled=draw(st.sampled_from([None, (4, 9), (512, 512), (1, 30)])),
    )
    if request.sets is not None:
        request = replace(request, partial=draw(st.booleans()))
    return {
        "tensors": {
            "batch": batch,
            "kv_heads": kv_heads,
            "group": group,
            "queries": queries,
            "keys": keys,
            "width": draw(st.sampled_from(widths)),
            "value_dim": draw(st.sampled_from(value_dims)),
            "seed": seed,
        },
        "mask": mask,
        "request": request,
        "softcap": draw(st.sampled_from([None, None, 2.5])),
        "sinks": torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
    }
