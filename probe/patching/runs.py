"""How does a patched run avoid computing the whole model again? It begins at the patch, on the clean run's cache.

1. `activations` runs one side of the pairs once and keeps what patches take: streams, heads' outputs, operands, cache.
2. A patched run differs from the clean one only behind the patch. Layers before it are skipped, and the clean stream
   enters the patch's layer.
3. Attention is causal, so columns before the first patched one do not change, and neither do columns before the first
   token in which the prompts differ. Their keys and values are read from the clean run's cache. If only END is patched,
   the run is one decoding step.
4. Many patches run at once, as copies of the prompts in one batch: row = copy x prompts + prompt. Copy 0 is never
   patched, so a patch that changes nothing has an effect of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from probe.engine.attention import engaged
from probe.engine.decoding import repeat
from probe.engine.padding import forward_options
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall
from probe.patching.effects import Effects, joined
from probe.patching.nodes import Place

if TYPE_CHECKING:
    from probe.engine.residual import ResidualStream
    from probe.models import Model
    from probe.patching.pairs import Pairs

Progress = Callable[[int, int], None]
"""Called with the number of steps done and the number of steps planned."""

N = TypeVar("N", bound=Place)

TOKENS = 1600
"""Largest number of tokens in a batch: copies times prompts times columns. The memory of a run grows with it."""


@dataclass(frozen=True, eq=False)
class Activations:
    """One side of the pairs computes these values, by layer and over all columns.

    entering [prompts, tokens, hidden]: the stream that enters the layer. z [prompts, heads, tokens, value_dim]: the
    heads' outputs. mlp [prompts, tokens, hidden]: what the MLP writes; empty if it cannot be told from attention.
    query, key, value: as attention takes them, after rotary embedding. difference [prompts]: the logit difference.
    cache: keys and values of all layers.
    """

    entering: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    query: tuple[Tensor, ...]
    key: tuple[Tensor, ...]
    value: tuple[Tensor, ...]
    difference: Tensor
    cache: DynamicCache


class _Operands(Intervention):
    """Change nothing; keep the operands and the output of every layer."""

    def __init__(self) -> None:
        self.kept: dict[int, list[Tensor]] = {}

    def before(self, call: AttentionCall) -> AttentionCall:
        self.kept[call.layer] = [call.query.detach(), call.key.detach(), call.value.detach()]
        return call

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        self.kept[call.layer].append(output.detach())
        return output


@torch.no_grad()
def activations(model: Model, pairs: Pairs, ids: Tensor) -> Activations:
    """Return what the prompts `ids`, one side of the pairs, compute in one forward pass."""
    stream = model.stream
    entering: dict[int, Tensor] = {}
    mlp: dict[int, Tensor] = {}
    operands = _Operands()

    def keep(into: dict[int, Tensor], layer: int) -> Callable[[Tensor], Tensor]:
        def see(states: Tensor) -> Tensor:
            into[layer] = states.detach().clone()
            return states

        return see

    cache = DynamicCache()
    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.enter_context(stream.entering(layer, keep(entering, layer)))
            if stream.split:
                stack.enter_context(stream.writing(layer, keep(mlp, layer)))
        difference = _forward(model, pairs, ids, (operands,), copies=1, cache=cache)[0]
    layers = range(model.n_layers)
    query, key, value, z = zip(*(operands.kept[layer] for layer in layers), strict=True)
    return Activations(
        entering=tuple(entering[layer] for layer in layers),
        z=z,
        mlp=tuple(mlp[layer] for layer in layers) if stream.split else (),
        query=query,
        key=key,
        value=value,
        difference=difference,
        cache=cache,
    )


def patched_effects(
    model: Model, pairs: Pairs, nodes: Sequence[N], begin: Begin[N], *, batch: int, progress: Progress | None
) -> Effects:
    """Return the effects of nodes, patched batch by batch and layer by layer.

    begin(rows, part, clean, corrupted) returns a batch's runs, and a function from some nodes of one layer to the
    changes of the logit difference [nodes, prompts]. progress: called with (nodes done, nodes planned).
    """
    parts, done = [], 0
    batches = list(pairs.batches(batch))
    for rows, part in batches:
        clean, corrupted = (activations(model, part, ids) for ids in (part.clean, part.corrupted))
        patched = clean.difference.repeat(len(nodes), 1)
        tail, change = begin(rows, part, clean, corrupted)
        for layer in sorted({node.layer for node in nodes}):
            places = [place for place, node in enumerate(nodes) if node.layer == layer]
            for start in range(0, len(places), tail.most):
                some = places[start : start + tail.most]
                patched[some] += change([nodes[place] for place in some])
                done += len(some)
                if progress is not None:
                    progress(done, len(nodes) * len(batches))
        parts.append((rows, Effects(tuple(nodes), patched, clean.difference, corrupted.difference)))
    return joined(parts, prompts=len(pairs))


def first_difference(pairs: Pairs) -> int:
    """Return the first column in which the two sides of any pair differ; END if none differs."""
    differ = (pairs.clean != pairs.corrupted).any(0).nonzero()[:, 0]
    return int(differ[0]) if len(differ) else pairs.end


class Tail:
    """Forward passes over copies of the clean prompts that begin at a layer.

    first: the first column to run; the columns before it are read from the clean run's cache.
    """

    def __init__(self, model: Model, pairs: Pairs, clean: Activations, *, first: int) -> None:
        self.model, self.pairs, self.clean, self.first = model, pairs, clean, first
        self.stream: ResidualStream = model.stream

    @property
    def most(self) -> int:
        """Return the number of copies that run at once, beside the one that is not patched."""
        return max(1, TOKENS // (len(self.pairs) * (self.pairs.end + 1 - self.first)) - 1)

    def copies(self, values: Tensor, count: int, *, columns: int = 1) -> Tensor:
        """Return values [prompts, ...] at the columns that run, once for each copy: [rows, ...]."""
        own = values.narrow(columns, self.first, values.shape[columns] - self.first)
        return own.repeat(count, *[1] * (own.ndim - 1))

    @torch.no_grad()
    def run(
        self,
        start: int,
        entering: Tensor,
        *interventions: Intervention,
        attention: bool = True,
        hooks: Sequence[AbstractContextManager[None]] = (),
    ) -> Tensor:
        """Return logit differences [copies, prompts] of runs in which entering [rows, columns, hidden] enters `start`.

        attention: False if the interventions give every z, so that no query needs to see a key. hooks: contexts that
        hold during the run.
        """
        copies = entering.shape[0] // len(self.pairs)
        ids = self.pairs.clean[:, self.first :].repeat(copies, 1)
        cache = None
        if attention and self.first:
            cache = repeat(self.clean.cache, copies, start=start, length=self.first)
        with ExitStack() as stack:
            stack.enter_context(self.stream.skipping(range(start)))
            for hook in hooks:
                stack.enter_context(hook)
            stack.enter_context(self.stream.entering(start, lambda states: entering.to(states)))
            return _forward(self.model, self.pairs, ids, interventions, copies=copies, cache=cache, masked=attention)


Begin = Callable[[Tensor, "Pairs", Activations, Activations], tuple[Tail, Callable[[list[N]], Tensor | float]]]
"""Given rows, pairs and both sides of a batch, returns its runs and the function that patches nodes of one layer."""


def _forward(
    model: Model, pairs: Pairs, ids: Tensor, interventions: Sequence[Intervention], *, copies: int,
    cache: DynamicCache | None, masked: bool = True,
) -> Tensor:  # fmt: skip
    """Return logit differences [copies, prompts] of ids [rows, columns], which continue the cache."""
    padding = pairs.padding.repeat(copies, 1) if masked and pairs.padding is not None else None
    options = forward_options(model.hf, padding, columns=ids.shape[1], logits_to_keep=1)
    options |= {"use_cache": cache is not None} | ({} if cache is None else {"past_key_values": cache})
    answers = torch.stack([pairs.good, pairs.bad], 1).repeat(copies, 1).to(model.device)
    with (
        engaged(model.hf, interventions=tuple(interventions), implementation=model.implementation),
        _only(model.hf, answers),
    ):
        logits = model.hf(input_ids=ids.to(model.device), **options).logits[:, -1].float()
    if logits.shape[1] != 2:
        logits = logits.gather(1, answers)
    return (logits[:, 0] - logits[:, 1]).view(copies, len(pairs)).cpu()


@contextmanager
def _only(hf: PreTrainedModel, answers: Tensor) -> Iterator[None]:
    """Compute the logits of the answers [rows, 2] alone, because the whole vocabulary would be half of the work."""
    head = hf.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in head.__dict__:
        yield
        return
    weight = head.weight[answers]
    bias = None if head.bias is None else head.bias[answers][:, None]

    def forward(input: Tensor) -> Tensor:
        logits = input @ weight.transpose(1, 2)
        return logits if bias is None else logits + bias

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
