"""Launches the sweeps over a row's keys: the forward pass, the k largest weights, the partial sums."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from probe.kernels.contract import Request, Scoring
from probe.kernels.triton.call import RowOutputs, Shared, Vectors, arguments, padded, reachable
from probe.kernels.triton.decode import combine_kernel
from probe.kernels.triton.forward import forward_kernel
from probe.kernels.triton.partial import partial_kernel
from probe.kernels.triton.rows import Asked
from probe.kernels.triton.sets import members, visits
from probe.kernels.triton.tiles import FEW_ROWS, Tiles, capability_of, decode_tiles, forward_tiles, share_keys
from probe.kernels.triton.top import top_kernel

# Longest list that rows keep while keys pass; more of the largest weights take more sweeps.
LONGEST = 64
# Most elements of the lists of a program, so that they stay in registers.
LISTS = 2048


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scoring: Scoring,
    sinks: Tensor | None,
    request: Request,
    tiles: Tiles | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output [batch, heads, queries, value_dim] in the query's dtype, and the row statistics by name.

    `top` is 0 or 1 here. Heads lie side by side in the output's memory, as models want them next.
    """
    query, scoring = _ascending(query, scoring)
    batch, heads, queries, width = query.shape
    value_width, pack = value.shape[3], _pack(query, key, request.sets)
    sets = 0 if request.sets is None else request.sets.shape[2]
    tiles = tiles or _tiles(query, key, pack, max(width, value_width), sets=sets)
    key, value = (Vectors.of(reachable(tensor, tiles.cols), fixed=True) for tensor in (key, value))
    call, form = arguments(Vectors.of(query), key, scoring, pack=pack)
    output = query.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    lead = (batch, heads, queries)
    found = _rows(query, lead, request)
    split = tiles.splits > 1
    sums = _rows(query, (tiles.splits, *lead), request, running=True) if split else found
    running = query.new_empty(tiles.splits, *lead, value_width, dtype=torch.float32) if split else output[None]
    sinks = None if sinks is None else sinks.float().contiguous()
    words = flags = Shared()
    if request.sets is not None:
        words, flags = map(Shared.of, members(request.sets, tiles.cols))
    asked = Asked(
        SINKS=sinks is not None,
        LSE=request.lse,
        ENTROPY=request.entropy,
        DISTANCE=request.distance,
        WINDOWED=request.windowed_distance is not None,
        TOP=request.top == 1,
        SETS=sets,
        WIDE=padded(sets) if sets else 1,
    )
    blocks = triton.cdiv(queries * pack, tiles.rows)
    forward_kernel[(blocks * batch * (heads // pack), tiles.splits)](
        call,
        value,
        words,
        flags,
        sinks,
        Vectors.of(running[0]),
        running.stride(0),
        RowOutputs(**sums),
        batch,
        scoring.mask.first_key,
        min(request.windowed_distance or 0, queries + call.keys + abs(call.ahead)),
        form,
        asked,
        SPLIT=split,
        **tiles.options(),
    )
    if split:
        combine_kernel[(batch * heads * queries,)](
            running,
            RowOutputs(**sums),
            sinks,
            Vectors.of(output),
            RowOutputs(**found),
            batch * heads * queries,
            heads,
            queries,
            tiles.splits,
            call.unit,
            asked,
            PARTS=triton.next_power_of_2(tiles.splits),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return output, found


def top(
    query: Tensor, key: Tensor, largest: Tensor, *, k: int, scoring: Scoring, tiles: Tiles | None = None
) -> dict[str, Tensor]:
    """Return `top_weight` and `top_key` [batch, heads, queries, k], from the `largest` weight [.., 1] of `forward`."""
    query, scoring = _ascending(query, scoring)
    batch, heads, queries, width = query.shape
    keys, pack = key.shape[2], _pack(query, key, None)
    listed = min(triton.next_power_of_2(k), LONGEST)
    tiles = (tiles or _tiles(query, key, pack, width)).narrow()
    rows = max(16, min(tiles.rows, LISTS // listed, 64 if width <= 64 else 32))
    options = tiles._replace(rows=rows, warps=4).options()
    call, form = arguments(Vectors.of(query), Vectors.of(key), scoring, pack=pack)
    scores, columns = [], []
    bound = bound_key = None
    for _ in range(triton.cdiv(k, listed)):
        score = query.new_empty(batch, heads, queries, listed, dtype=torch.float32)
        column = query.new_empty(batch, heads, queries, listed, dtype=torch.int32)
        top_kernel[(triton.cdiv(queries * pack, rows) * batch * (heads // pack),)](
            call, bound, bound_key, score, column, form, LISTED=listed, AFTER=bound is not None, **options
        )
        column, order = column.masked_fill_(column < 0, keys).sort(dim=-1)
        score, order = score.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        column = column.gather(-1, order)
        scores.append(score)
        columns.append(column)
        bound, bound_key = score[..., -1].contiguous(), column[..., -1].contiguous()
    column = torch.cat(columns, -1)[..., :k].long()
    empty = column == keys
    score = torch.cat(scores, -1)[..., :k]
    weight = largest * torch.exp2((score - score[..., :1]) * call.unit)
    return {
        "top_weight": weight.masked_fill_(empty, 0),
        "top_key": column.add_(scoring.mask.first_key).masked_fill_(empty, -1),
    }


def partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    sets: Tensor,
    *,
    scoring: Scoring,
    tiles: Tiles | None = None,
) -> Tensor:
    """Return the sum of p v over each set [.., sets, keys]: [batch, heads, queries, sets, value_dim] float32."""
    batch, heads, queries, width = query.shape
    value_width = value.shape[3]
    pack = _pack(query, key, sets)
    tiles = (tiles or _tiles(query, key, pack, max(width, value_width))).narrow()
    count, (words, _), (order, before) = sets.shape[2], members(sets, tiles.cols), visits(sets, tiles.cols)
    call, form = arguments(Vectors.of(query), Vectors.of(key), scoring, pack=pack)
    found = query.new_empty(batch, heads, queries, count, value_width, dtype=torch.float32)
    partial_kernel[(triton.cdiv(queries * pack, tiles.rows) * batch * (heads // pack), count)](
        call,
        Vectors.of(value),
        lse,
        Shared.of(words),
        Shared.of(order),
        Shared.of(before),
        found,
        order.shape[3],
        form,
        SETS=count,
        **tiles.options(),
    )
    return found


def _ascending(query: Tensor, scoring: Scoring) -> tuple[Tensor, Scoring]:
    """Return query and scoring with a positive scale: kernels find a row's largest score before they scale."""
    if scoring.softcap is not None or scoring.scale > 0:
        return query, scoring
    if scoring.scale == 0:
        return torch.zeros_like(query), replace(scoring, scale=1.0)
    return query.neg(), replace(scoring, scale=-scoring.scale)


def _rows(query: Tensor, lead: tuple[int, ...], request: Request, *, running: bool = False) -> dict[str, Tensor]:
    """Return memory for the statistics asked for; `running` sums have a peak and a mass too, as lse and top_weight."""
    sizes = replace(request, partial=False).row_sizes()
    found = {}
    for name in sizes | ({"lse": (), "top_weight": (1,)} if running else {}):
        dtype = torch.int64 if name == "top_key" else torch.float32
        found[name] = query.new_empty(*lead, *sizes.get(name, ()), dtype=dtype)
    return found


def _pack(query: Tensor, key: Tensor, sets: Tensor | None) -> int:
    """Return how many query heads a program has: all of a KV head, or one where heads have key sets of their own."""
    return query.shape[1] // key.shape[1] if sets is None or sets.shape[1] == 1 else 1


def _tiles(query: Tensor, key: Tensor, pack: int, width: int, *, sets: int = 0) -> Tiles:
    """Return the tiles that suit the device and the number of rows."""
    batch, heads, queries, _ = query.shape
    rows = queries * pack
    if rows > FEW_ROWS:
        return forward_tiles(width, query.dtype, capability_of(query), sets=sets)
    tiles = decode_tiles(rows, width, query.dtype, capability_of(query))
    programs = triton.cdiv(rows, tiles.rows) * batch * (heads // pack)
    return tiles._replace(splits=share_keys(query, programs, triton.cdiv(key.shape[2], tiles.cols)))
