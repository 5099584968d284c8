"""Which effect does a head have directly, through no other head? Path patching measures it.

The method is that of Wang et al. 2022, appendix B:

1. The sender's output is replaced by that of the corrupted prompt. The output of every other head is held at its clean
   value. MLPs are recomputed, or held as well (`freeze_mlps`; compare Goldowsky-Dill et al. 2023).
2. `to_logits` reads the logit difference of this run: the effect along the direct path.
3. `to_inputs` takes from this run only the queries, keys or values that the chosen receivers are given, and puts them
   into a clean run in which everything else is recomputed: the effect through these receivers.

While all heads are held, nothing moves between columns. From the sender's layer on, a run then consists of norms, MLPs
and sums of the stream. It needs no attention and, for the logits, no column but END. All senders of a layer run at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall
from probe.patching.effects import Effects
from probe.patching.nodes import MLP, OPERANDS, Input, Sender, checked, checked_senders
from probe.patching.runs import Activations, Progress, Tail, first_difference, patched_effects

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs


def to_logits(
    model: Model,
    pairs: Pairs,
    *,
    senders: Sequence[Sender | tuple[int, int]] | None = None,
    freeze_mlps: bool = False,
    batch: int = 40,
    progress: Progress | None = None,
) -> Effects:
    """Return the effect of each sender on the logit difference along the direct path; all heads without `senders`.

    freeze_mlps: hold the MLPs at their clean values too. batch: number of prompts that run at once. progress: called
    with (senders done, senders planned), over all batches. Raises UsageError for a sender that the model does not have.
    """
    return _patched(model, pairs, None, senders, freeze_mlps=freeze_mlps, end=True, batch=batch, progress=progress)


def to_inputs(
    model: Model,
    pairs: Pairs,
    receivers: Sequence[Input],
    *,
    senders: Sequence[Sender | tuple[int, int]] | None = None,
    freeze_mlps: bool = False,
    end: bool = False,
    batch: int = 40,
    progress: Progress | None = None,
) -> Effects:
    """Return the effect of each sender on the logit difference through the receivers' queries, keys or values.

    end: patch the sender at END alone, which is exact for receivers that are queries at END; False patches it at every
    column. A sender has no path to receivers in its layer or before it, and an effect of 0 on them. Other options are
    those of `to_logits`. Raises UsageError for a sender or receiver that the model does not have.
    """
    given = checked(model, receivers, "receiver was given: name at least one query, key or value")
    inputs = tuple(dict.fromkeys(given))
    return _patched(model, pairs, inputs, senders, freeze_mlps=freeze_mlps, end=end, batch=batch, progress=progress)


def _patched(
    model: Model, pairs: Pairs, receivers: tuple[Input, ...] | None,
    senders: Sequence[Sender | tuple[int, int]] | None, *,
    freeze_mlps: bool, end: bool, batch: int, progress: Progress | None,
) -> Effects:  # fmt: skip
    nodes = checked_senders(model, senders)
    if not model.stream.split and (freeze_mlps or any(isinstance(node, MLP) for node in nodes)):
        raise UsageError(
            f"the writes of attention and MLP in {model.name} cannot be told apart: name heads as senders and leave "
            "freeze_mlps off"
        )

    def begin(
        rows: Tensor, part: Pairs, clean: Activations, corrupted: Activations
    ) -> tuple[Tail, Callable[[list[Sender]], Tensor | float]]:
        tail = Tail(model, part, clean, first=part.end if end else first_difference(part))
        return tail, lambda some: _Senders(tail, corrupted, some[0].layer, freeze_mlps).effects(some, receivers)

    return patched_effects(model, pairs, nodes, begin, batch=batch, progress=progress)


class _Senders:
    """The senders of one layer, patched at once: copy 0 of the prompts is clean, copy n has the n-th sender patched."""

    def __init__(self, tail: Tail, corrupted: Activations, layer: int, freeze_mlps: bool) -> None:
        self.tail, self.clean, self.corrupted = tail, tail.clean, corrupted
        self.layer, self.freeze_mlps = layer, freeze_mlps

    def effects(self, senders: list[Sender], receivers: tuple[Input, ...] | None) -> Tensor | float:
        """Return the changes of the logit difference [senders, prompts]; 0 if no receiver can be reached."""
        if receivers is None:
            found = self._frozen(senders)
            return found[1:] - found[0]
        reached = tuple(each for each in receivers if each.layer > self.layer)
        if not reached:
            return 0.0
        operands = _Operands(reached)
        self._frozen(senders, operands)
        entering = self.tail.copies(self.clean.entering[operands.first], len(senders) + 1)
        found = self.tail.run(operands.first, entering, _Given(operands))
        return torch.where(operands.changed(len(self.tail.pairs)), found[1:] - found[0], 0)

    def _frozen(self, senders: list[Sender], operands: _Operands | None = None) -> Tensor:
        """Return logit differences [copies, prompts] with all heads held; with `operands`, stop behind receivers."""
        copies, tail = len(senders) + 1, self.tail
        size = len(tail.pairs)
        z = {self.layer: tail.copies(self.clean.z[self.layer], copies, columns=2)}
        hooks: list[AbstractContextManager[None]] = []
        frozen = range(self.layer, tail.model.n_layers) if self.freeze_mlps else ()
        written = {layer: tail.copies(self.clean.mlp[layer], copies) for layer in frozen}
        corrupted = tail.copies(self.corrupted.z[self.layer], 1, columns=2)
        mlps = []
        for copy, sender in enumerate(senders, start=1):
            own = slice(copy * size, (copy + 1) * size)
            if isinstance(sender, Head):
                z[self.layer][own, sender.head] = corrupted[:, sender.head]
            else:
                mlps.append(own)

        def write(layer: int) -> Callable[[Tensor], Tensor]:
            def states(computed: Tensor) -> Tensor:
                found = written.get(layer, computed).to(computed).clone().view(copies * size, -1, computed.shape[-1])
                for own in mlps if layer == self.layer else ():
                    found[own] = tail.copies(self.corrupted.mlp[layer], 1)
                return found.view_as(computed)

            return states

        for layer in written.keys() | ({self.layer} if mlps else set()):
            hooks.append(tail.stream.writing(layer, write(layer)))
        if operands is not None:
            hooks.append(tail.stream.skipping(range(operands.last + 1, tail.model.n_layers)))
        entering = tail.copies(self.clean.entering[self.layer], copies)
        seen = () if operands is None else (operands,)
        held = _Kept(tail, self.clean, z, copies)
        return tail.run(self.layer, entering, *seen, held, attention=operands is not None, hooks=hooks)


class _Kept(Intervention):
    """Give every layer the z that `z` holds for it, or else that of the clean run."""

    def __init__(self, tail: Tail, clean: Activations, z: dict[int, Tensor], copies: int) -> None:
        self._tail, self._clean, self._z, self._copies = tail, clean, z, copies

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        own = self._z.get(call.layer)
        return self._tail.copies(self._clean.z[call.layer], self._copies, columns=2) if own is None else own


class _Operands(Intervention):
    """Change nothing; keep the queries, keys and values that receivers are given, [rows, tokens, width]."""

    def __init__(self, receivers: Sequence[Input]) -> None:
        layers = [each.layer for each in receivers]
        self.receivers, self.first, self.last = receivers, min(layers), max(layers)
        self.states: dict[Input, Tensor] = {}

    def before(self, call: AttentionCall) -> AttentionCall:
        for each in self.of(call):
            self.states[each] = getattr(call, OPERANDS[each.kind])[:, each.head].clone()
        return call

    def changed(self, prompts: int) -> Tensor:
        """Return [copies - 1, prompts] bool: whether a copy's operands differ from copy 0's by more than rounding.

        The rows of one matrix product are rounded differently, and a sender that changes nothing must have no effect.
        """
        found = torch.zeros((), dtype=torch.bool)
        for states in self.states.values():
            copies = states.view(-1, prompts, *states.shape[1:])
            limit = 8 * torch.finfo(states.dtype).eps * states.abs().amax()
            found = found | ((copies[1:] - copies[0]).abs().amax((2, 3)) > limit).cpu()
        return found

    def of(self, call: AttentionCall) -> list[Input]:
        """Return the receivers of the call's layer."""
        return [each for each in self.receivers if each.layer == call.layer]


class _Given(Intervention):
    """Give the receivers the queries, keys and values that were kept."""

    def __init__(self, operands: _Operands) -> None:
        self._operands = operands

    def before(self, call: AttentionCall) -> AttentionCall:
        changed: dict[str, Tensor] = {}
        for each in self._operands.of(call):
            name = OPERANDS[each.kind]
            states = changed.setdefault(name, getattr(call, name).clone())
            states[:, each.head] = self._operands.states[each]
        return replace(call, **changed)
