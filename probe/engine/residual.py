"""Where is the residual stream of a model, and who writes to it? Found by running the model, not by names of modules.

A transformer's layers read and write one running sum, the residual stream: stream <- stream + attention(stream), then
stream <- stream + MLP(stream). This module reads the stream after every sub-block and sets values in it, through
forward hooks.

1. The decoder layers are the members of the module list that holds the attention modules which the seam check saw.
2. In a short pass, the two children of a layer whose outputs add up to the layer's change are its two writers:
   attention first, then the MLP. Where a norm follows the attention module, that norm is the writer.
3. A layer that no two children explain (its residuals are scaled, say) can only be read as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.engine.attention import text_config
from probe.engine.hooks import first, installed, with_first
from probe.errors import ProbeError, UsageError

SPLIT, WHOLE = ("attention", "mlp"), ("layer",)
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # 1e-3 for others
"""Largest distance between the sum of two outputs and a layer's change, relative to the change, for its writers."""


class ResidualStream:
    """The residual stream of a model: its decoder layers and, where they can be told apart, the two writers of each.

    blocks: ("attention", "mlp"), or ("layer",) where the writers are unknown. places: (layer, block) in the order in
    which they write. attention: the attention module of each layer, which the seam check saw (`Seam.modules`).
    """

    def __init__(self, hf: PreTrainedModel, attention: Sequence[nn.Module]) -> None:
        self._hf = hf
        self.layers: list[nn.Module] = _decoder_layers(hf, attention)
        self._tuples: dict[int, bool] = {}
        writers = self._writers()
        self._attention = [pair[0] for pair in writers if pair is not None]
        self._mlps = [pair[1] for pair in writers if pair is not None]
        self.blocks = SPLIT if len(self._attention) == len(self.layers) else WHOLE
        self.places = [(layer, block) for layer in range(len(self.layers)) for block in self.blocks]

    @property
    def split(self) -> bool:
        """Return whether the writes of attention and MLP can be told apart."""
        return self.blocks == SPLIT

    @contextmanager
    def watched(self, see: Callable[[int, str, Tensor], None]) -> Iterator[None]:
        """Call see(layer, block, stream [batch, tokens, hidden]) after each sub-block of every forward pass inside."""
        entering: dict[int, Tensor] = {}

        def enter(layer: int, module: nn.Module, args: tuple, options: dict) -> None:
            entering[layer] = first(args[0] if args else options["hidden_states"])

        def attended(layer: int, module: nn.Module, args: tuple, output: Any) -> None:
            see(layer, SPLIT[0], entering[layer] + first(output).view_as(entering[layer]))

        def left(layer: int, module: nn.Module, args: tuple, output: Any) -> None:
            see(layer, self.blocks[-1], first(output))

        handles = []
        for index, layer in enumerate(self.layers):
            handles.append(layer.register_forward_pre_hook(partial(enter, index), with_kwargs=True))
            if self.split:
                handles.append(self._attention[index].register_forward_hook(partial(attended, index)))
            handles.append(layer.register_forward_hook(partial(left, index)))
        with installed(*handles):
            yield

    @contextmanager
    def setting(self, layer: int, position: int, dims: Sequence[int], values: Tensor | float) -> Iterator[None]:
        """Set the stream that leaves `layer`, at one position and these dimensions, to `values` [dims] or one value."""
        if not 0 <= layer < len(self.layers):
            raise UsageError(f"layer must be within 0..{len(self.layers) - 1}, got {layer}")

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            states = first(output).clone()
            states[:, position, list(dims)] = torch.as_tensor(values, dtype=states.dtype, device=states.device)
            return with_first(output, states)

        with installed(self.layers[layer].register_forward_hook(hook)):
            yield

    @contextmanager
    def entering(self, layer: int, states: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let `states(stream)` enter a layer instead of the stream [rows, tokens, hidden] that the model hands it."""

        def hook(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
            if args:
                return (states(args[0]), *args[1:]), options
            return args, options | {"hidden_states": states(options["hidden_states"])}

        with installed(self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)):
            yield

    @contextmanager
    def skipping(self, layers: Sequence[int]) -> Iterator[None]:
        """Pass the stream by these layers untouched. Nothing in them is computed or cached."""
        with self.replacing(lambda layer, forward, states: states, layers=layers):
            yield

    @contextmanager
    def replacing(
        self,
        step: Callable[[int, Callable[[Tensor], Any], Tensor], Tensor],
        *,
        layers: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Let step(layer, forward, stream that enters) return what leaves a layer; all layers unless `layers` is given.

        forward(stream) runs the layer itself on any stream, with everything else that the model hands to the layer.
        """

        def by(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
                left = step(index, lambda states: own(states, *args, **options), hidden_states)
                return (left,) if self._tuples[index] else left

            return forward

        chosen = range(len(self.layers)) if layers is None else layers
        former = {index: self.layers[index].__dict__.get("forward") for index in chosen}
        try:
            for index in chosen:
                self.layers[index].forward = by(index, self.layers[index].forward)
            yield
        finally:
            for index, own in former.items():
                if own is None:
                    self.layers[index].__dict__.pop("forward", None)
                else:  # one that was set on the object, as accelerate does
                    self.layers[index].forward = own

    def writers(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """Return the two parts of a layer whose outputs its attention and its MLP write. Raises ProbeError without."""
        if not self.split:
            raise ProbeError(
                f"the layers of {type(self._hf).__name__} are no sum of an attention and an MLP: what only one of the "
                "two writes cannot be read or changed there"
            )
        return self._attention[layer], self._mlps[layer]

    @contextmanager
    def writing(self, layer: int, write: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let a layer's MLP write `write(states)` instead of its states [rows, tokens, hidden]. Raises ProbeError."""

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            return with_first(output, write(first(output)).view_as(first(output)))

        with installed(self.writers(layer)[1].register_forward_hook(hook)):
            yield

    @torch.no_grad()
    def _writers(self) -> list[tuple[nn.Module, nn.Module] | None]:
        """Return by layer the children that write to the stream, in call order; None if no two sum to the change."""
        seen: list[list[tuple[nn.Module, Tensor]]] = [[] for _ in self.layers]
        entered: dict[int, Tensor] = {}
        left: dict[int, Tensor] = {}

        def keep(index: int, module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(states := first(output), Tensor):
                seen[index].append((module, states.detach().clone()))

        def enter(index: int, module: nn.Module, args: tuple, options: dict) -> None:
            entered[index] = first(args[0] if args else options["hidden_states"]).detach().clone()

        def leave(index: int, module: nn.Module, args: tuple, output: Any) -> None:
            self._tuples[index] = isinstance(output, tuple)
            left[index] = first(output).detach().clone()

        handles = []
        for index, layer in enumerate(self.layers):
            handles += [child.register_forward_hook(partial(keep, index)) for child in layer.children()]
            handles.append(layer.register_forward_pre_hook(partial(enter, index), with_kwargs=True))
            handles.append(layer.register_forward_hook(partial(leave, index)))
        with installed(*handles):
            ids = torch.arange(1, 9, device=self._hf.device)[None] % text_config(self._hf).vocab_size
            self._hf(input_ids=ids, use_cache=False)
        return [_pair(seen[index], left[index] - entered[index]) for index in range(len(self.layers))]


def _pair(outputs: list[tuple[nn.Module, Tensor]], change: Tensor) -> tuple[nn.Module, nn.Module] | None:
    """Return the two modules whose outputs add up to `change`, in call order, or None."""
    fitting = [(module, states.view_as(change)) for module, states in outputs if states.numel() == change.numel()]
    best = min(
        (((a[1] + b[1] - change).norm() / change.norm(), a[0], b[0]) for a, b in combinations(fitting, 2)),
        key=lambda candidate: float(candidate[0]),
        default=None,
    )
    return None if best is None or not best[0] < TOLERANCE.get(change.dtype, 1e-3) else (best[1], best[2])


def _decoder_layers(hf: PreTrainedModel, attention: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the decoder layers in order: the members of a module list that hold the attention modules."""
    lists = [module for module in hf.modules() if isinstance(module, nn.ModuleList)]
    owners = {id(part): layer for each in reversed(lists) for layer in each for part in layer.modules()}
    found = [owners[id(module)] for module in attention if id(module) in owners]
    if len(found) != len(attention):
        raise ProbeError(
            f"{type(hf).__name__} does not keep its layers in a module list: its residual stream cannot be read"
        )
    return found
