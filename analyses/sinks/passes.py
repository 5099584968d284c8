"""The passes of the sink analysis: one that measures a text, and those that change its first token.

A sample is a dictionary of JSON values, with tensors as nested lists.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probe.analyses.heads.sink_scores import sink_score
from probe.analyses.sinks.massive_activations import massive, phi, writer
from probe.analyses.sinks.statistics import value_norm_ratio
from probe.engine.attention import engaged
from probe.interventions.call import AttentionCall
from probe.kernels.contract import Band, Request, Statistics
from probe.models import Model
from probe.tokens import Tokens

Sample = dict[str, Any]
NONE, ZERO, MEAN, CONTROL, RANDOM, ONLY = "none", "zero", "mean", "control dim", "random dim", "only this dim"
CONDITIONS = (NONE, ZERO, MEAN, CONTROL, RANDOM, ONLY)


class SinkObserver:
    """Keeps of each layer: column means [heads, keys], first-token mass [heads], value ratio [heads], window."""

    def __init__(self) -> None:
        self.column_means: list[Tensor] = []
        self.first_mass: list[Tensor] = []
        self.value_ratio: list[Tensor] = []
        self.windows: list[int | None] = []

    def request(self, call: AttentionCall) -> Request:
        first = torch.zeros(1, 1, 1, call.key.shape[2], dtype=torch.bool, device=call.key.device)
        first[..., 0] = True
        return Request(received=Band(), sets=first)

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        assert statistics.received is not None and statistics.mass is not None
        self.column_means.append(statistics.received[0].cpu())
        self.first_mass.append(sink_score(statistics.mass[None, ..., 0].cpu())[0, 0])
        ratio = value_norm_ratio(call.value[0].detach()).cpu()
        self.value_ratio.append(ratio.repeat_interleave(call.query.shape[1] // len(ratio)))
        self.windows.append(call.mask.window)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A massive dimension, the layer after which it is set, and its mean on the first token of the other texts.

    others: dimensions that are not massive: the control first, then the random ones. massive: the massive dimensions,
    largest first. mean is None for a single text.
    """

    dim: int
    layer: int
    mean: float | None
    others: Sequence[int]
    massive: Sequence[int]


@torch.no_grad()
def measure(model: Model, tokens: Tokens, *, min_magnitude: float, min_ratio: float) -> Sample:
    """Return what one pass over a text shows: column means, value norms, the first token's stream, massive activations.

    first: [places, hidden]. peaks: largest and median |x| by place. massive: (layer, block, position, dimension, value,
    median) of each massive activation.
    """
    observer = SinkObserver()
    first: list[list[float]] = []
    entries: list[list[Any]] = []
    peaks: list[list[float]] = []

    def see(layer: int, block: str, states: Tensor) -> None:
        here = states[0].detach()
        mask, median = massive(here, min_magnitude=min_magnitude, min_ratio=min_ratio)
        first.append(here[0].float().tolist())
        peaks.append([float(here.abs().max()), median])
        for position, dim in mask.nonzero().tolist():
            entries.append([layer, block, position, dim, float(here[position, dim]), median])

    with model.stream.watched(see):
        loss = _loss(model, tokens, observer)
    return {
        "loss": loss,
        "column_means": torch.stack(observer.column_means).tolist(),
        "first_mass": torch.stack(observer.first_mass).tolist(),
        "value_ratio": torch.stack(observer.value_ratio).tolist(),
        "windows": observer.windows,
        "first": first,
        "peaks": peaks,
        "massive": entries,
    }


def targets(samples: Sequence[Sample], places: Sequence[tuple[int, str]], *, randoms: int, seed: int) -> list[Target]:
    """Return for each text what to set: the dimension that is largest on first tokens, after the layer that writes it.

    The list is empty if no first token has a massive activation. The mean is over the other texts.
    """
    dims = massive_dims(samples)
    if not dims:
        return []
    first = torch.tensor([sample["first"] for sample in samples])  # texts, places, hidden
    dim = dims[0]
    place = writer(first[..., dim].mean(0))
    layer = places[place][0]
    last = max(index for index, where in enumerate(places) if where[0] == layer)
    values = first[:, last, dim]
    free = [each for each in range(first.shape[-1]) if each not in dims]
    control = next(each for each in [*range(dim + 1, first.shape[-1]), *range(dim)] if each in set(free))
    drawn = random.Random(seed).sample([each for each in free if each != control], min(randoms, len(free) - 1))
    means = [None] if len(samples) == 1 else ((values.sum() - values) / (len(samples) - 1)).tolist()
    return [Target(dim=dim, layer=layer, mean=mean, others=(control, *drawn), massive=tuple(dims)) for mean in means]


def massive_dims(samples: Sequence[Sample]) -> list[int]:
    """Return the dimensions that are massive on a first token, largest |x| first."""
    largest: dict[int, float] = {}
    for sample in samples:
        for _, _, position, dim, value, _ in sample["massive"]:
            if position == 0:
                largest[dim] = max(largest.get(dim, 0.0), abs(value))
    return sorted(largest, key=lambda dim: -largest[dim])


@torch.no_grad()
def cause(model: Model, tokens: Tokens, target: Target) -> Sample:
    """Return the loss and the attention to the first token, by layer, under each condition, and phi of every token.

    phi: [layers - 1][tokens], of the stream that enters the layers from 1 on.
    """
    hidden = next(model.hf.get_input_embeddings().parameters()).shape[-1]
    rows = []
    for name, dims, value in _conditions(target, hidden):
        observer = SinkObserver()
        change = nullcontext() if name == NONE else model.stream.setting(target.layer, 0, dims, value)
        with change:
            loss = _loss(model, tokens, observer)
        rows.append(
            {
                "condition": name,
                "dim": dims[0] if len(dims) == 1 else target.dim if name == ONLY else None,
                "value": value if name != NONE else None,
                "loss": loss,
                "first_mass": torch.stack(observer.first_mass).mean(-1).tolist(),
            }
        )
    return {"conditions": rows, "phi": _phi(model, tokens, target.massive), "layer": target.layer}


def _conditions(target: Target, hidden: int) -> Iterator[tuple[str, list[int], float]]:
    yield NONE, [], 0.0
    yield ZERO, [target.dim], 0.0
    if target.mean is not None:
        yield MEAN, [target.dim], target.mean
    for index, dim in enumerate(target.others):
        yield (CONTROL if index == 0 else RANDOM), [dim], 0.0
    yield ONLY, [dim for dim in range(hidden) if dim != target.dim], 0.0


def _phi(model: Model, tokens: Tokens, dims: Sequence[int]) -> list[list[float]]:
    """Return phi of each token in the stream that leaves each layer but the last, and so enters the next."""
    found: list[list[float]] = []
    stream = model.stream

    def see(layer: int, block: str, states: Tensor) -> None:
        if block == stream.blocks[-1] and layer < len(stream.layers) - 1:
            found.append(phi(states[0].detach(), dims).tolist())

    with stream.watched(see):
        model.prefill(tokens.ids)
    return found


@torch.no_grad()
def _loss(model: Model, tokens: Tokens, observer: SinkObserver) -> float:
    """Return the mean next-token loss in nats per token."""
    ids = tokens.ids.to(model.device)
    with engaged(model.hf, observers=(observer,), implementation=model.implementation):
        logits = model.hf(input_ids=ids[None], use_cache=False).logits[0]
    picked = logits[:-1].float().log_softmax(-1).gather(-1, ids[1:, None])
    return -float(picked.double().mean())
