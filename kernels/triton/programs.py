"""The rows that a program has, and the keys that they may see.

Row r of a program is query r // pack of head r % pack of the `pack` heads that it has. They share a KV head, so that K
and V are read once for all of them, and one query alone still fills a tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from probe.kernels.triton.scores import head_at


class Rows(NamedTuple):
    """The rows of a program.

    batch, first_head, block: of all of them. head, i, own [rows]: the query's head, its index, and the key column at
    its position. q [rows, DIMS]: its vector. pairs [rows]: where its row of the mask's pairs begins. key, kept: where
    the keys of the KV head and the text's padding begin.
    """

    batch: Any
    first_head: Any
    block: Any
    head: Any
    i: Any
    own: Any
    q: Any
    key: Any
    kept: Any
    pairs: Any


@triton.jit
def head_of_program(blocks, heads):
    """Return (batch and head as one number, batch, head, block) of a program, where every head has `blocks` blocks."""
    which = (tl.program_id(0) // blocks).to(tl.int64)
    return which, which // heads, which % heads, tl.program_id(0) % blocks


@triton.jit
def rows_of_program(program, call, ROWS: tl.constexpr):
    """Return (batch, first head, block of rows; query and head for each of the ROWS rows).

    Rows beyond the last query repeat it: they come to the same numbers and write them to the same place, which takes
    fewer registers than a mask.
    """
    blocks = tl.cdiv(call.queries * call.pack, ROWS)
    packs = call.heads // call.pack
    # the last rows of a causal map see the most keys: they go first
    block = blocks - 1 - program % blocks
    which = program // blocks
    row = block * ROWS + tl.arange(0, ROWS)
    first_head = (which % packs) * call.pack
    i = tl.minimum(row // call.pack, call.queries - 1)
    head = (first_head + row % call.pack).to(tl.int64)
    return (which // packs).to(tl.int64), first_head.to(tl.int64), block, i, head


@triton.jit
def open_rows(call, form, ROWS: tl.constexpr):
    """Return the `Rows` of this program."""
    batch, first_head, block, i, head = rows_of_program(tl.program_id(0), call, ROWS)
    kept = call.kept.at
    if form.KEPT:
        kept += batch * call.kept.batch
    pairs = call.pairs.at
    if form.PAIRS:
        pairs += batch * call.pairs.batch + head * call.pairs.head + i.to(tl.int64) * call.pairs.row
    return Rows(
        batch,
        first_head,
        block,
        head,
        i,
        i + call.ahead,
        load_queries(call.query, batch, head, i, form),
        head_at(call.key, batch, first_head // call.group),
        kept,
        pairs,
    )


@triton.jit
def keys_of_program(block, call, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return (first column, number of tiles) that hold every key some row may see, and the rows' own columns."""
    low = (block * ROWS) // call.pack + call.ahead
    high = tl.minimum((block * ROWS + ROWS - 1) // call.pack, call.queries - 1) + call.ahead
    start = tl.maximum(low - call.far, 0) // COLS * COLS
    stop = tl.minimum(high - call.near + 1, call.keys)
    return start, tl.cdiv(tl.maximum(stop - start, 0), COLS), low, high


@triton.jit
def load_queries(query, batch, head, i, form):
    """Return the vectors of the rows, with 0 beyond WIDTH: [rows, DIMS]."""
    dim = tl.arange(0, query.DIMS)
    at = query.at + batch * query.batch + head[:, None] * query.head + i[:, None].to(tl.int64) * query.row
    q = tl.load(at + dim[None, :] * query.dim, mask=(dim < query.WIDTH)[None, :], other=0.0)
    return q.to(tl.float32) if form.UPCAST else q
