"""The two matrix products of causal attention and nothing else: the time that no attention on this machine can beat.

S = Q K^T and O = S V over the causal half, a block of queries at a time, the query heads of a KV head as rows of one
product. The products are done by whichever of torch's ways is fastest here: on AMD processors its ordinary product does
not use AVX-512, and oneDNN's does.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.kernels.products import linear

ROWS = (64, 128, 256)
TRIALS = 5

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Products:
    """Calling it does the arithmetic; `how` says by which products, `operations` counts multiplications, additions."""

    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]
    first: Product
    second: Product
    threads: int
    how: str

    @property
    def operations(self) -> int:
        return sum(2 * q.shape[0] * k.shape[1] * (q.shape[1] + v.shape[1]) for q, k, v in self.blocks)

    def __call__(self) -> None:
        if self.threads == 1:
            for block in self.blocks:
                self._do(block)
            return
        # threads of their own, each with a whole block: a product shared among threads waits for the slowest
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self._do, self.blocks))

    def _do(self, block: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        q, k, v = block
        return self.second(self.first(q, k), v)


def prepare(query: Tensor, key: Tensor, value: Tensor, *, threads: int) -> Products:
    """Return the products for query [batch, heads, n, d], key and value [batch, kv_heads, n, d]."""
    kinds: dict[str, Product] = {"torch.mm": torch.mm}
    if query.device.type == "cpu" and torch.backends.mkldnn.is_available():
        kinds["oneDNN"] = linear
    if query.device.type == "cpu":
        torch.set_num_threads(1)  # each thread of the pool does whole blocks
    else:
        threads = 1
    trials = []
    for rows in ROWS:
        blocks = _blocks(query, key, value, rows)
        q, k, v = blocks[len(blocks) // 2]
        first, scores = _fastest(kinds, q, k), q @ k
        second = _fastest(kinds, scores, v)
        found = Products(
            blocks, kinds[first], kinds[second], threads, f"{first} and {second}, {rows} queries of a KV head at a time"
        )
        trials.append((_seconds(found, query.device), found))
    return min(trials, key=lambda trial: trial[0])[1]


def _blocks(query: Tensor, key: Tensor, value: Tensor, rows: int) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Return queries of a KV head's group, and the keys (transposed) and values that they see; long blocks first."""
    batch, heads, length, width = query.shape
    group = heads // key.shape[1]
    blocks = []
    for stop in range(length, 0, -rows):
        start = max(stop - rows, 0)
        for text in range(batch):
            for kv in range(key.shape[1]):
                q = query[text, kv * group : (kv + 1) * group, start:stop].reshape(-1, width)
                blocks.append((q, key[text, kv, :stop].t(), value[text, kv, :stop]))
    return tuple(blocks)


def _fastest(kinds: dict[str, Product], left: Tensor, right: Tensor) -> str:
    return min(kinds, key=lambda name: _seconds(lambda: kinds[name](left, right), left.device))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the least of a few trials, after one that is not counted."""

    def done() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return min(timeit.repeat(done, number=1, repeat=TRIALS + 1)[1:])
