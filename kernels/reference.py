"""Attention and its statistics as they are defined: the whole map, in float64.

Every other implementation is compared with this one. Each formula therefore stands here as the README writes it, one
statement per statistic, without regard to speed. Memory grows as batch x heads x queries x keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probe.kernels.band import counted_queries
from probe.kernels.blocks import HIDDEN, Block, visible_pairs
from probe.kernels.contract import Band, Mask, Request, Scoring, Statistics

# autograd goes through the definitions
DIFFERENTIABLE = True
EDITS = True


def scores(query: Tensor, key: Tensor, scoring: Scoring) -> Tensor:
    """Return the scaled, capped, edited scores, -inf where masked: [batch, heads, queries, keys] float64."""
    group, cap = query.shape[1] // key.shape[1], scoring.softcap
    s = scoring.scale * (query.double() @ key.double().repeat_interleave(group, dim=1).transpose(-2, -1))
    if cap is not None:
        s = cap * torch.tanh(s / cap)
    for edit in scoring.edits:
        s = s.clone()
        edit.apply(s[:, :, None], Block(*(slice(0, size) for size in s.shape)))
        s = s.masked_fill(s <= HIDDEN / 2, -math.inf)
    visible = visible_pairs(slice(0, query.shape[2]), slice(0, key.shape[2]), scoring.mask, query.device)
    return s.masked_fill(~visible, -math.inf)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring, sinks: Tensor | None, request: Request
) -> tuple[Tensor, Statistics]:
    """Return the output [batch, heads, queries, value_dim] and the statistics that `request` names, all float64."""
    s = scores(query, key, scoring)
    blind = s.isneginf().all(-1)
    everything = s if sinks is None else torch.cat([s, sinks.double()[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    # a row of -inf alone has no gradient that is a number: give it finite scores, and take its weights away afterwards
    log_p = everything.masked_fill(blind[..., None], 0).log_softmax(-1)[..., : s.shape[-1]]
    p = log_p.exp().masked_fill(s.isneginf(), 0)
    v = value.double().repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    output = p @ v
    with torch.no_grad():
        return output, statistics(p, log_p, everything, v, blind, scoring.mask, request)


def statistics(
    p: Tensor, log_p: Tensor, s: Tensor, v: Tensor, blind: Tensor, mask: Mask, request: Request
) -> Statistics:
    """Return the statistics from p [batch, heads, queries, keys], log p, and the scores with the sink appended."""
    away = torch.arange(p.shape[2], device=p.device)[:, None] - torch.arange(p.shape[3], device=p.device)
    away += mask.ahead  # i - j
    found: dict[str, Tensor] = {}
    if request.lse:
        found["lse"] = s.logsumexp(-1).masked_fill(blind, -math.inf)
    if request.entropy:
        found["entropy"] = -torch.where(p == 0, 0, p * log_p).sum(-1).masked_fill(blind, math.nan)
    if request.distance:
        found["distance"] = (p * away).sum(-1).masked_fill(blind, math.nan)
    if request.windowed_distance is not None:
        clipped = away.clamp(max=request.windowed_distance)
        found["windowed_distance"] = (p * clipped).sum(-1).masked_fill(blind, math.nan)
    if request.top:
        # a visible key may underflow to p = 0: rank the scores, not the weights
        ranked, key = s[..., : p.shape[-1]].sort(dim=-1, descending=True, stable=True)
        ranked, key = ranked[..., : request.top], key[..., : request.top]
        found["top_weight"] = p.gather(-1, key)
        found["top_key"] = (key + mask.first_key).masked_fill(ranked.isneginf(), -1)
    if request.sets is not None:
        member = request.sets.to(p.dtype).expand(*p.shape[:2], -1, -1)
        found["mass"] = (p @ member.transpose(-2, -1)).masked_fill(blind[..., None], math.nan)
        if request.partial:
            found["partial"] = torch.einsum("bhqk,bhsk,bhkv->bhqsv", p, member, v)
    if request.received is not None:
        found["received"], found["received_rows"] = received(p, away, mask, request.received)
    if request.pooled is not None:
        found["pooled"] = pooled(p, request.pooled)
    return Statistics(**found)


def received(p: Tensor, away: Tensor, mask: Mask, band: Band) -> tuple[Tensor, Tensor]:
    """Return the mean weight on each key, [batch, heads, keys], and how many queries it is over, [batch, keys]."""
    inside = away >= band.lo
    if band.hi is not None:
        inside &= away <= band.hi
    inside = inside & counted_queries(p.shape[2], mask, band, p.device)[:, :, None]
    rows = inside.sum(1).expand(p.shape[0], -1)
    return (p * inside[:, None]).sum(2) / rows[:, None], rows


def pooled(p: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the max of p over tiles: [batch, heads, queries, keys] -> at most [batch, heads, *shape]."""
    tile_rows, tile_cols = (math.ceil(size / most) for size, most in zip(p.shape[2:], shape, strict=True))
    rows = torch.stack([tile.amax(2) for tile in p.split(tile_rows, dim=2)], 2)
    return torch.stack([tile.amax(3) for tile in rows.split(tile_cols, dim=3)], 3)


def tile(query: Tensor, key: Tensor, lse: Tensor, *, rows: range, cols: range, scoring: Scoring) -> Tensor:
    """Return the weights p of the query and key indices: [batch, heads, len(rows), len(cols)] float64."""
    s = scores(query, key, scoring)
    p = (s - lse.double()[..., None]).exp().masked_fill(s.isneginf(), 0)
    return p[:, :, rows.start : rows.stop : rows.step, cols.start : cols.stop : cols.step]


def pool(query: Tensor, key: Tensor, lse: Tensor, *, shape: tuple[int, int], scoring: Scoring) -> Tensor:
    """Return the max of p over tiles: at most [batch, heads, *shape] float64."""
    rows, cols = range(query.shape[2]), range(key.shape[2])
    return pooled(tile(query, key, lse, rows=rows, cols=cols, scoring=scoring), shape)
