"""Launches the sweeps over a row's keys: the forward pass, the k largest weights, the partial sums."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from probe.kernels.contract import Mask, Request
from probe.kernels.triton.decode import combine_kernel
from probe.kernels.triton.forward import forward_kernel
from probe.kernels.triton.partial import partial_kernel
from probe.kernels.triton.scores import Scoring, as_bytes, padded, precision, reachable, shared_strides, upcast
from probe.kernels.triton.sets import Members, Visits
from probe.kernels.triton.tiles import FEW_ROWS, Tiles, capability_of, decode_tiles, forward_tiles, share_keys
from probe.kernels.triton.top import top_kernel

# Longest list that rows keep while keys pass; more of the largest weights take more sweeps.
LONGEST = 64
# Most elements of the lists of a program, so that they stay in registers.
LISTS = 2048
# Products and sums of the loops become multiply-adds, whatever Triton's default is.
FUSED = {"enable_fp_fusion": True}


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    request: Request,
    tiles: Tiles | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output [batch, heads, queries, value_dim] in the query's dtype, and the row statistics asked for by name.

    `top` is 0 or 1 here. Heads lie side by side in the output's memory, as models want them next.
    """
    if softcap is None and scale <= 0:
        # the kernel finds a row's largest score before it scales
        query, scale = (query.neg(), -scale) if scale else (torch.zeros_like(query), 1.0)
    batch, heads, queries, width = query.shape
    keys, value_width = value.shape[2:]
    sets = request.sets
    pack = _pack(query, key, sets)
    wide = max(width, value_width)
    tiles = tiles or _tiles(query, key, pack, wide, sets=0 if sets is None else sets.shape[2])
    key, value = reachable(key, tiles.cols), reachable(value, tiles.cols)
    members = None if sets is None else Members.of(sets, tiles.cols)
    scoring = Scoring.of(query, key, mask, scale, softcap)
    output = query.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    lead = (batch, heads, queries)
    found = _rows(query, lead, request)
    split = tiles.splits > 1
    sums = _rows(query, (tiles.splits, *lead), request, running=True) if split else found
    running = query.new_empty(tiles.splits, *lead, value_width, dtype=torch.float32) if split else output[None]
    kept, kept_strides = as_bytes(mask.keys, query, (batch, keys))
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    words, word_strides, occupied, occupied_strides = _members(members, query)
    sinks = query if sinks is None else sinks.float().contiguous()
    switches = {
        "SINKS": sinks is not query,
        "LSE": request.lse,
        "ENTROPY": request.entropy,
        "DISTANCE": request.distance,
        "WINDOWED": request.windowed_distance is not None,
        "TOP": request.top == 1,
        "SETS": 0 if members is None else members.sets,
        "WIDE": 1 if members is None else padded(members.sets),
    }
    blocks = triton.cdiv(queries * pack, tiles.rows)
    forward_kernel[(blocks * batch * (heads // pack), tiles.splits)](
        query,
        key,
        value,
        kept,
        pairs,
        words,
        occupied,
        sinks,
        running,
        *(sums.get(name, output) for name in _NAMES),
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *kept_strides,
        *pairs_strides,
        *word_strides,
        *occupied_strides,
        *running.stride()[:4],
        batch,
        heads,
        heads // key.shape[1],
        pack,
        queries,
        keys,
        scoring.ahead,
        scoring.near,
        scoring.far,
        mask.first_key,
        scoring.slope,
        scoring.cap,
        scoring.unit,
        min(request.windowed_distance or 0, queries + keys + abs(scoring.ahead)),
        WIDTH=width,
        DIMS=padded(width),
        VALUE_WIDTH=value_width,
        VALUE_DIMS=padded(value_width),
        ROWS=tiles.rows,
        COLS=tiles.cols,
        EDGE_COLS=min(tiles.cols, tiles.edge),
        SLOTS=tiles.slots,
        RUN=tiles.run,
        SETTLE=tiles.settle,
        STAGES=tiles.stages,
        CAPPED=scoring.capped,
        SLIDING=scoring.windowed,
        ALIKE=key.stride()[2:] == value.stride()[2:],
        KEPT=mask.keys is not None,
        PAIRS=mask.pairs is not None,
        SPLIT=split,
        PRECISION=precision(query),
        UPCAST=upcast(query),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **FUSED,
        **switches,
    )
    if split:
        combine_kernel[(batch * heads * queries,)](
            running,
            *(sums.get(name, running) for name in ("lse", "top_weight", *_NAMES[1:4], "top_key", "mass")),
            sinks,
            output,
            *(found.get(name, output) for name in _NAMES),
            *output.stride()[:3],
            batch * heads * queries,
            heads,
            queries,
            tiles.splits,
            scoring.unit,
            VALUE_WIDTH=value_width,
            VALUE_DIMS=padded(value_width),
            PARTS=triton.next_power_of_2(tiles.splits),
            num_warps=4,
            **FUSED,
            **switches,
        )
    return output, found


def top(
    query: Tensor,
    key: Tensor,
    largest: Tensor,
    *,
    k: int,
    mask: Mask,
    scale: float,
    softcap: float | None,
    tiles: Tiles | None = None,
) -> dict[str, Tensor]:
    """`top_weight` and `top_key` [batch, heads, queries, k], from the `largest` weight [.., 1] that `forward` found."""
    if softcap is None and scale <= 0:
        query, scale = (query.neg(), -scale) if scale else (torch.zeros_like(query), 1.0)
    batch, heads, queries, width = query.shape
    keys, pack = key.shape[2], _pack(query, key, None)
    listed = min(triton.next_power_of_2(k), LONGEST)
    tiles = (tiles or _tiles(query, key, pack, width)).narrow()
    rows = max(16, min(tiles.rows, LISTS // listed, 64 if width <= 64 else 32))
    scoring = Scoring.of(query, key, mask, scale, softcap)
    kept, kept_strides = as_bytes(mask.keys, query, (batch, keys))
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    scores, columns = [], []
    bound = bound_key = None
    for _ in range(triton.cdiv(k, listed)):
        score = query.new_empty(batch, heads, queries, listed, dtype=torch.float32)
        column = query.new_empty(batch, heads, queries, listed, dtype=torch.int32)
        top_kernel[(triton.cdiv(queries * pack, rows) * batch * (heads // pack),)](
            query,
            key,
            kept,
            pairs,
            score if bound is None else bound,
            column if bound_key is None else bound_key,
            score,
            column,
            *query.stride(),
            *key.stride(),
            *kept_strides,
            *pairs_strides,
            heads,
            heads // key.shape[1],
            pack,
            queries,
            keys,
            scoring.ahead,
            scoring.near,
            scoring.far,
            scoring.slope,
            scoring.cap,
            WIDTH=width,
            DIMS=padded(width),
            ROWS=rows,
            COLS=tiles.cols,
            LISTED=listed,
            STAGES=tiles.stages,
            AFTER=bound is not None,
            CAPPED=scoring.capped,
            KEPT=mask.keys is not None,
            PAIRS=mask.pairs is not None,
            PRECISION=precision(query),
            UPCAST=upcast(query),
            num_warps=4,
            num_stages=tiles.stages,
            **FUSED,
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
    weight = largest * torch.exp2((score - score[..., :1]) * scoring.unit)
    return {
        "top_weight": weight.masked_fill_(empty, 0),
        "top_key": column.add_(mask.first_key).masked_fill_(empty, -1),
    }


def partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    *,
    sets: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Sum of p v over each of the sets [.., sets, keys]: [batch, heads, queries, sets, value_dim] float32."""
    batch, heads, queries, width = query.shape
    keys, value_width = value.shape[2:]
    pack = _pack(query, key, sets)
    tiles = (tiles or _tiles(query, key, pack, max(width, value_width))).narrow()
    members, visits = Members.of(sets, tiles.cols), Visits.of(sets, tiles.cols)
    scoring = Scoring.of(query, key, mask, scale, softcap)
    kept, kept_strides = as_bytes(mask.keys, query, (batch, keys))
    pairs, pairs_strides = as_bytes(mask.pairs, query, (batch, heads, queries, keys))
    found = query.new_empty(batch, heads, queries, members.sets, value_width, dtype=torch.float32)
    partial_kernel[(triton.cdiv(queries * pack, tiles.rows) * batch * (heads // pack), members.sets)](
        query,
        key,
        value,
        lse,
        kept,
        pairs,
        members.words,
        visits.order,
        visits.before,
        found,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *kept_strides,
        *pairs_strides,
        *shared_strides(members.words)[:2],
        *shared_strides(visits.order)[:2],
        *shared_strides(visits.before)[:2],
        visits.order.shape[3],
        heads,
        heads // key.shape[1],
        pack,
        queries,
        keys,
        scoring.ahead,
        scoring.near,
        scoring.far,
        scoring.slope,
        scoring.cap,
        scoring.unit,
        SETS=members.sets,
        WIDTH=width,
        DIMS=padded(width),
        VALUE_WIDTH=value_width,
        VALUE_DIMS=padded(value_width),
        ROWS=tiles.rows,
        COLS=tiles.cols,
        STAGES=tiles.stages,
        CAPPED=scoring.capped,
        KEPT=mask.keys is not None,
        PAIRS=mask.pairs is not None,
        PRECISION=precision(query),
        UPCAST=upcast(query),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **FUSED,
    )
    return found


_NAMES = ("lse", "entropy", "distance", "windowed_distance", "top_weight", "top_key", "mass")


def _rows(query: Tensor, lead: tuple[int, ...], request: Request, *, running: bool = False) -> dict[str, Tensor]:
    """Memory for the statistics asked for; `running` sums always have a peak and a mass, where lse and top stand."""
    wanted = {
        "lse": request.lse or running,
        "entropy": request.entropy,
        "distance": request.distance,
        "windowed_distance": request.windowed_distance is not None,
        "top_weight": request.top == 1 or running,
    }
    found = {name: query.new_empty(lead, dtype=torch.float32) for name, asked in wanted.items() if asked}
    if request.top == 1:
        found["top_key"] = query.new_empty(lead, dtype=torch.int64)
    if not running and request.top == 1:
        found |= {name: found[name][..., None] for name in ("top_weight", "top_key")}
    if request.sets is not None:
        found["mass"] = query.new_empty(*lead, request.sets.shape[2], dtype=torch.float32)
    return found


def _pack(query: Tensor, key: Tensor, sets: Tensor | None) -> int:
    """How many query heads a program has: all of a KV head, or one where heads have key sets of their own."""
    return query.shape[1] // key.shape[1] if sets is None or sets.shape[1] == 1 else 1


def _tiles(query: Tensor, key: Tensor, pack: int, width: int, *, sets: int = 0) -> Tiles:
    """What suits the device and the number of rows."""
    batch, heads, queries, _ = query.shape
    rows = queries * pack
    if rows > FEW_ROWS:
        return forward_tiles(width, query.dtype, capability_of(query), sets=sets)
    tiles = decode_tiles(rows, width, query.dtype, capability_of(query))
    programs = triton.cdiv(rows, tiles.rows) * batch * (heads // pack)
    return replace(tiles, splits=share_keys(query, programs, triton.cdiv(key.shape[2], tiles.cols)))


def _members(members: Members | None, stand_in: Tensor) -> tuple[Tensor, tuple[int, ...], Tensor, tuple[int, ...]]:
    if members is None:
        return stand_in, (0, 0), stand_in, (0, 0)
    return members.words, shared_strides(members.words)[:2], members.occupied, shared_strides(members.occupied)[:2]
