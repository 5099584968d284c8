"""The one entry to fused attention: it checks its arguments, then calls one implementation.

To add an implementation, write a module with `attend`, and with `tile` and `pool` if it has them, that takes the
arguments as they are passed below. Name it in IMPLEMENTATIONS, fastest first. If it cannot serve every call, give it
`refusal(query, key, **options) -> str | None`, which returns the reason. If it can serve a call that "auto" should not
give it, `by_name_only(query)` returns that reason. This module adds the output's gradient, unless the implementation
sets DIFFERENTIABLE. An implementation that does not set EDITS gets no call with edits.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from probe.kernels.checks import check, check_ranges, check_request, check_scoring, check_tensors
from probe.kernels.contract import Mask, Request, Scoring, Statistics
from probe.kernels.edits import Edit
from probe.kernels.gradients import Attention, without_gradient

IMPLEMENTATIONS = {
    "sdpa": "probe.kernels.sdpa",
    "triton": "probe.kernels.triton.attention",
    "native": "probe.kernels.native.attention",
    "blocked": "probe.kernels.blocked.attention",
    "reference": "probe.kernels.reference",
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    request: Request | None = None,
    edits: tuple[Edit, ...] = (),
    implementation: str = "auto",
) -> tuple[Tensor, Statistics]:
    """Return the attention output, [batch, heads, queries, value_dim], and the statistics that `request` names.

    query is [batch, heads, queries, head_dim], key [batch, kv_heads, keys, head_dim], value [batch, kv_heads, keys,
    value_dim]; query head h reads KV head h // (heads // kv_heads). The output has the query's dtype (float64 under
    "reference") and can be differentiated. Differentiating a statistic raises RuntimeError.

    mask: None for a causal mask with the last query at the last key.
    scale: None for head_dim ** -0.5.
    softcap: scores become softcap * tanh(score / softcap), before the mask.
    sinks: [heads] learned logits that take weight in every row and have no value; rows then sum to less than one.
    edits: changes of the pattern, applied in this order; "blocked" and "reference" support them. A backward pass treats
        them as constants.
    implementation: a name in IMPLEMENTATIONS, or "auto" for the fastest that can serve the call.

    Raises ValueError for arguments that do not fit together, and for a named implementation that cannot serve them.
    """
    check_tensors(query, key, value)
    scoring = _scoring(query, key, mask, scale, softcap, *edits)
    request, inputs = request or Request(), (query, key, value, sinks)
    check_scoring(query, key, scoring)
    if sinks is not None:
        check("sinks", sinks, [query.shape[1]], "floating", query)
    check_request(query, key, request)
    options = {"scoring": scoring, "sinks": sinks}
    module = _serving("attend", implementation, query, key, value=value, request=request, **options)[1]

    def forward(request: Request) -> tuple[Tensor, Statistics]:
        return module.attend(query, key, value, request=request, **options)

    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in inputs):
        return forward(request)
    if getattr(module, "DIFFERENTIABLE", False):
        output, statistics = forward(request)
    else:
        output, statistics = Attention.apply(forward, scoring, request, *inputs)
    return output, without_gradient(statistics, *inputs)


def tile(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    rows: range | None = None,
    cols: range | None = None,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Return the weights p of a rectangle of the map: [batch, heads, len(rows), len(cols)].

    rows and cols are query and key indices, not positions; None for all. lse [batch, heads, queries] is the one that
    `attend` returned: it includes learned sinks, so none are passed here. The weights are float32 (float64 under
    "reference"), without gradient.
    """
    scoring, module = _again("tile", implementation, query, key, lse, mask, scale, softcap)
    rows = range(query.shape[2]) if rows is None else rows
    cols = range(key.shape[2]) if cols is None else cols
    check_ranges(query, key, rows, cols)
    return module.tile(query, key, lse, rows=rows, cols=cols, scoring=scoring)


def pool(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    shape: tuple[int, int] = (512, 512),
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Return the largest p of each tile of the map: at most [batch, heads, *shape].

    A tile has ceil(queries / shape[0]) x ceil(keys / shape[1]) pairs. This is the map of `Statistics.pooled`, computed
    from what a capture keeps. The other arguments are those of `tile`.
    """
    scoring, module = _again("pool", implementation, query, key, lse, mask, scale, softcap)
    check_request(query, key, Request(pooled=shape))
    return module.pool(query, key, lse, shape=shape, scoring=scoring)


def chosen(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    request: Request | None = None,
    edits: tuple[Edit, ...] = (),
    implementation: str = "auto",
) -> str:
    """Return the name of the implementation that `attend` runs for these arguments, for a manifest."""
    options = {"sinks": sinks, "request": request or Request()}
    scoring = _scoring(query, key, mask, None, softcap, *edits)
    return _serving("attend", implementation, query, key, scoring=scoring, **options)[0]


def _scoring(
    query: Tensor, key: Tensor, mask: Mask | None, scale: float | None, softcap: float | None, *edits: Edit
) -> Scoring:
    """Return how scores are made, with what None stands for."""
    mask = Mask(first_query=key.shape[2] - query.shape[2]) if mask is None else mask
    return Scoring(mask, query.shape[-1] ** -0.5 if scale is None else scale, softcap, edits)


def _again(
    entry: str, implementation: str, query: Tensor, key: Tensor, lse: Tensor, *scoring: Any
) -> tuple[Scoring, ModuleType]:
    """Check the arguments that `tile` and `pool` share; return how scores are made, and the module that serves."""
    check_tensors(query, key)
    made = _scoring(query, key, *scoring)
    check_scoring(query, key, made)
    check("lse", lse, [*query.shape[:3]], "floating", query)
    return made, _serving(entry, implementation, query, key, scoring=made)[1]


def _serving(
    entry: str, implementation: str, query: Tensor, key: Tensor, *, scoring: Scoring, **options: object
) -> tuple[str, ModuleType]:
    """Return name and module of the implementation that serves `entry`."""
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected one of auto, {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    reasons = []
    for name in IMPLEMENTATIONS if implementation == "auto" else (implementation,):
        module = importlib.import_module(IMPLEMENTATIONS[name])
        refusal = getattr(module, "refusal", None)
        if scoring.edits and not getattr(module, "EDITS", False):
            reason = "cannot edit the pattern"
        else:
            reason = None if refusal is None else refusal(query, key, scoring=scoring, **options)
        if reason is None and implementation == "auto" and hasattr(module, "by_name_only"):
            reason = module.by_name_only(query)
        if reason is None and hasattr(module, entry):
            return name, module
        reasons.append(f"{name}: {reason or f'has no {entry}'}")
    raise ValueError(
        f"no implementation can serve this: {'; '.join(reasons)}; expected one of {', '.join(IMPLEMENTATIONS)}"
    )
