"""Path patching of every head to the logits, beside the loop of hooked forward passes that it replaces.

The loop is what circuit code does: hooks on the input of every output projection keep all heads at their clean values,
one head's columns at END are the corrupted prompt's, and a whole forward pass gives the logits; once for each head. It
takes the same prompts in the same batches on the model's own attention.

`python -m probe.benchmarks.patching` times both here and compares their numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import probe
from probe.analyses.circuits.tasks.registry import task
from probe.heads import Head
from probe.models import Model
from probe.patching.pairs import Pairs
from probe.patching.paths import to_logits

BATCH = 40


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds for all heads; the loop's, from those of the heads that it ran. difference: the largest, in logits."""

    heads: int
    prompts: int
    ours: float
    loop: float
    looped: int
    difference: float

    @property
    def times(self) -> float:
        """Return the loop's time as a multiple of this one's."""
        return self.loop / self.ours

    def __str__(self) -> str:
        return (
            f"{self.heads} heads, {self.prompts} pairs of prompts: {self.ours:.1f} s; loop of hooked forward passes "
            f"{self.loop:.0f} s, {self.times:.0f} times as long ({self.looped} heads run); largest difference of a "
            f"patched logit difference {self.difference:.1e}"
        )


def compare(model: Model, pairs: Pairs, *, every: int = 1) -> Comparison:
    """Return the comparison of both ways, run in turn.

    every: the loop runs every n-th head only, and its time is scaled up.
    """
    heads = model.heads()
    some = heads[::every]
    to_logits(model, pairs.take([0]), senders=some[:1])  # what is found out on first use
    start = time.perf_counter()
    ours = to_logits(model, pairs, batch=BATCH)
    middle = time.perf_counter()
    looped = hooked_loop(model, pairs, some)
    end = time.perf_counter()
    return Comparison(
        heads=len(heads),
        prompts=len(pairs),
        ours=middle - start,
        loop=(end - middle) * len(heads) / len(some),
        looped=len(some),
        difference=float((ours.patched[::every] - looped).abs().max()),
    )


@torch.no_grad()
def hooked_loop(model: Model, pairs: Pairs, heads: Sequence[Head]) -> Tensor:
    """Return the patched logit differences [heads, prompts], one whole forward pass for each head and batch."""
    found = torch.empty(len(heads), len(pairs))
    width = model.head_dim
    for rows, part in pairs.batches(BATCH):
        clean, corrupted = (_projected(model, part, ids) for ids in (part.clean, part.corrupted))
        for place, head in enumerate(heads):
            columns = slice(head.head * width, (head.head + 1) * width)
            own = clean[head.layer].clone()
            own[:, -1, columns] = corrupted[head.layer][:, -1, columns]
            given = [*clean[: head.layer], own, *clean[head.layer + 1 :]]
            with _hooked(model, lambda layer, _, given=given: given[layer]):
                found[place, rows] = part.logit_difference(_logits(model, part, part.clean)).cpu()
    return found


def _projected(model: Model, pairs: Pairs, ids: Tensor) -> list[Tensor]:
    """Return what the output projection of each layer is given, [prompts, tokens, heads x head_dim]."""
    seen: list[Tensor] = []
    with _hooked(model, lambda _, given: seen.append(given.clone())):
        _logits(model, pairs, ids)
    return seen


@contextmanager
def _hooked(model: Model, hook: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `hook` with the layer and what its output projection is given; a tensor that it returns takes its place."""
    with ExitStack() as stack:
        for layer, block in enumerate(model.stream.layers):
            projection: Any = block.self_attn.o_proj
            handle = projection.register_forward_pre_hook(lambda _, args, layer=layer: hook(layer, args[0]))
            stack.callback(handle.remove)
        yield


def _logits(model: Model, pairs: Pairs, ids: Tensor) -> Tensor:
    """Return the logits at END, [prompts, vocab], on the model's own attention."""
    options = {}
    if pairs.padding is not None:
        padding = pairs.padding.to(model.device)
        options = {"attention_mask": padding, "position_ids": (padding.long().cumsum(-1) - 1).clamp(min=0)}
    return model.hf(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1, **options).logits[:, -1]


def main() -> None:
    """Print the comparison for IOI."""
    parser = argparse.ArgumentParser(description="Path patching to the logits, beside a loop of hooked forward passes.")
    parser.add_argument("--model", default="llama", help="short name, hub id or folder (default: llama)")
    parser.add_argument("--prompts", type=int, default=40, help="pairs of prompts (default: 40)")
    parser.add_argument("--every", type=int, default=1, help="run the loop for every N-th head only (default: 1)")
    options = parser.parse_args()
    model = probe.load(options.model)
    print(compare(model, task(model, "ioi", prompts=options.prompts).pairs(model), every=options.every))


if __name__ == "__main__":
    main()
