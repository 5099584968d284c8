"""The kernel cases: attention on random tensors, by torch, by our implementations, and with the whole map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probe.benchmarks.plan import Case, Settings
from probe.benchmarks.products import prepare
from probe.kernels.attend import IMPLEMENTATIONS, attend, chosen
from probe.kernels.contract import Band, Request

WINDOW = 10
OTHERS = ("sdpa", "reference")
"""Implementations without a case: the first returns no statistics, the second is the definition."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The function that is timed for a case, and facts about it that are reported.

    check: called on what the first call returned, outside the clock; raises ValueError if that is not what the case
    measures. holds: an object that stays in memory though the call does not use it, such as a model's tokenizer.
    """

    call: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    holds: object = None


def inputs(settings: Settings, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random query [batch, heads, length, head_dim], key and value [batch, kv_heads, length, head_dim]."""
    generator = torch.Generator().manual_seed(settings.seed)
    heads = (settings.heads, settings.kv_heads, settings.kv_heads)
    tensors = (torch.randn(settings.batch, count, length, settings.head_dim, generator=generator) for count in heads)
    dtype = getattr(torch, settings.dtype)
    query, key, value = (tensor.to(device=settings.device, dtype=dtype) for tensor in tensors)
    return query, key, value


def requests(length: int, *, seed: int = 0, device: str = "cpu") -> dict[str, Request]:
    """Return the statistics of each kind of case, by its name in `Case.statistics`."""
    rows = {"lse": True, "entropy": True, "distance": True, "top": 1}
    position = torch.arange(length)
    sets = torch.stack(
        (
            position < 4,
            (position >= length // 3) & (position < length // 3 + 40),
            torch.rand(length, generator=torch.Generator().manual_seed(seed)) < 0.1,
            position >= length // 2,
        )
    ).to(device)
    return {
        "rows": Request(**rows),
        "columns": Request(**rows, received=Band()),
        "sets": Request(**rows, received=Band(), windowed_distance=WINDOW, sets=sets[None, None]),
    }


def serving(settings: Settings) -> dict[str, str]:
    """Return the implementations to measure by name: "" for those that can serve here, else the reason."""
    query, key, _ = inputs(settings, 8)
    found = {}
    for name in IMPLEMENTATIONS:
        if name in OTHERS:
            continue
        try:
            chosen(query, key, request=Request(lse=True), implementation=name)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error).partition(f"{name}: ")[2].rpartition("; expected one of")[0]
    return found


def work(case: Case, settings: Settings, length: int) -> Work:
    """Return the work of a kernel case."""
    query, key, value = inputs(settings, length)
    if case.method == "sdpa":
        return Work(call=lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
    if case.method == "products":
        products = prepare(query, key, value, threads=settings.threads)
        return Work(call=products, facts={"products": products.how, "operations": products.operations})
    if case.method == "attend":
        request = requests(length, seed=settings.seed, device=settings.device)[case.statistics]
        name = chosen(query, key, request=request, implementation=case.implementation)  # builds what has to be built
        return Work(call=lambda: attend(query, key, value, request=request, implementation=name))
    if case.method == "dense":
        return Work(call=lambda: dense(query, key, value))
    if case.method == "flex":
        return flex(query, key, value, lse=case.statistics == "lse")
    raise ValueError(f"expected a method of a kernel case, got {case.method!r}")


def dense(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return output, row statistics, top key and received attention, from the whole map in float32."""
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    position = torch.arange(length, device=query.device)
    scores = (query @ key.mT).float() * query.shape[3] ** -0.5
    scores.masked_fill_(position > position[:, None], -torch.inf)
    weights = scores.softmax(-1)
    return (
        weights.to(value.dtype) @ value,
        scores.logsumexp(-1),
        torch.special.entr(weights).sum(-1),
        position - weights @ position.float(),
        *weights.max(-1),
        weights.sum(2) / (length - position),
    )


def flex(query: Tensor, key: Tensor, value: Tensor, *, lse: bool) -> Work:
    """Return the work of torch's flex_attention, compiled before it is timed."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    length = query.shape[2]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=str(query.device))
    options: dict[str, Any] = {"block_mask": mask, "enable_gqa": True}
    if lse:
        options["return_aux"] = AuxRequest(lse=True)
    compiled = torch.compile(flex_attention, dynamic=False)
    compiled(query, key, value, **options)
    return Work(call=lambda: compiled(query, key, value, **options))
