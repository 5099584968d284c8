"""The residual stream: read it after every sub-block of a model, or set values in it, through forward hooks.

Which submodules write to the stream is found, not assumed: in one short pass, the two children of a decoder layer whose
outputs add up to the layer's change are its attention and its MLP (with the norm behind them, where there is one). A
layer that no two children explain (scaled residuals, say) is read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.engine.attention import engaged
from probe.errors import ProbeError, UsageError
from probe.kernels.contract import Request, Statistics

if TYPE_CHECKING:
    from probe.interventions.base import AttentionCall
    from probe.models import Model

SPLIT, WHOLE = ("attention", "mlp"), ("layer",)
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # 1e-3 for others
"""How far two outputs may be from a layer's change, as a share of it, to be taken for its writers."""


class ResidualStream:
    """The decoder layers of a model and, where they can be told apart, the sub-blocks that write to the stream.

    blocks: ("attention", "mlp"), or ("layer",). places: (layer, block) in the order in which they write.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.layers: list[nn.Module] = _decoder_layers(model)
        self._tuples: dict[int, bool] = {}
        writers = [self._writers(index) for index in range(len(self.layers))]
        self._attention = [pair[0] for pair in writers if pair is not None]
        self._mlps = [pair[1] for pair in writers if pair is not None]
        self.blocks = SPLIT if len(self._attention) == len(self.layers) else WHOLE
        self.places = [(layer, block) for layer in range(len(self.layers)) for block in self.blocks]

    @property
    def split(self) -> bool:
        """Whether attention and MLP can be told apart."""
        return self.blocks == SPLIT

    @contextmanager
    def watched(self, see: Callable[[int, str, Tensor], None]) -> Iterator[None]:
        """Call see(layer, block, stream [batch, tokens, hidden]) after each sub-block of every forward pass inside."""
        entering: dict[int, Tensor] = {}

        def enter(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, options: dict) -> None:
                entering[layer] = _states(args[0] if args else options["hidden_states"])

            return hook

        def attended(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                see(layer, SPLIT[0], entering[layer] + _states(output).view_as(entering[layer]))

            return hook

        def left(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                see(layer, self.blocks[-1], _states(output))

            return hook

        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                handles = [layer.register_forward_pre_hook(enter(index), with_kwargs=True)]
                if self.split:
                    handles.append(self._attention[index].register_forward_hook(attended(index)))
                handles.append(layer.register_forward_hook(left(index)))
                for handle in handles:
                    stack.callback(handle.remove)
            yield

    @contextmanager
    def setting(self, layer: int, position: int, dims: Sequence[int], values: Tensor | float) -> Iterator[None]:
        """Set the stream that leaves `layer`, at one position and these dimensions, to `values` [dims] or one value."""
        if not 0 <= layer < len(self.layers):
            raise UsageError(f"expected a layer within 0..{len(self.layers) - 1}, got {layer}")

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            states = _states(output).clone()
            new = torch.as_tensor(values, dtype=states.dtype, device=states.device)
            states[:, position, list(dims)] = new
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = self.layers[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def entering(self, layer: int, states: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let `states(stream)` enter a layer instead of the stream [rows, tokens, hidden] that would."""

        def hook(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
            if args:
                return (states(args[0]), *args[1:]), options
            return args, options | {"hidden_states": states(options["hidden_states"])}

        handle = self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def skipping(self, layers: Sequence[int]) -> Iterator[None]:
        """Pass the stream by these layers untouched; nothing in them is computed, nor cached."""
        with self.replacing(lambda layer, forward, states: states, layers=layers):
            yield

    @contextmanager
    def replacing(
        self,
        step: Callable[[int, Callable[[Tensor], Any], Tensor], Tensor],
        *,
        layers: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Let step(layer, forward, stream that enters) say what leaves a layer; all layers unless `layers` says.

        forward(stream) runs the layer itself on any stream, with all else that the model hands to the layer.
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
        """The parts of a layer whose outputs are what its attention and its MLP write. Raises ProbeError."""
        if not self.split:
            raise ProbeError(f"{type(self._model.hf).__name__} keeps attention and MLP no two parts of its layers")
        return self._attention[layer], self._mlps[layer]

    @contextmanager
    def writing(self, layer: int, write: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let a layer's MLP write `write(states)` instead of its states [rows, tokens, hidden]. Raises ProbeError."""
        mlp = self.writers(layer)[1]

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            states = _states(output)
            new = write(states).view_as(states)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = mlp.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _writers(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        """The children that write to the stream, in call order; None where no two outputs add up to the change."""
        layer, seen, around = self.layers[index], [], {}

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(states := _states(output), Tensor):
                seen.append((module, states.detach().clone()))

        def enter(module: nn.Module, args: tuple, options: dict) -> None:
            around["in"] = _states(args[0] if args else options["hidden_states"]).detach().clone()

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self._tuples[index] = isinstance(output, tuple)
            around["out"] = _states(output).detach().clone()

        handles = [child.register_forward_hook(keep) for child in layer.children()]
        handles += [layer.register_forward_pre_hook(enter, with_kwargs=True), layer.register_forward_hook(leave)]
        try:
            _short_pass(self._model)
        finally:
            for handle in handles:
                handle.remove()
        change = around["out"] - around["in"]
        fitting = [(module, states.view_as(change)) for module, states in seen if states.numel() == change.numel()]
        best = min(
            (((a[1] + b[1] - change).norm() / change.norm(), a[0], b[0]) for a, b in combinations(fitting, 2)),
            key=lambda found: float(found[0]),
            default=None,
        )
        return None if best is None or not best[0] < TOLERANCE.get(change.dtype, 1e-3) else (best[1], best[2])


class _Modules:
    """An observer that notes which module made each attention call."""

    def __init__(self) -> None:
        self.by_layer: dict[int, nn.Module] = {}

    def request(self, call: AttentionCall) -> Request | None:
        self.by_layer[call.layer] = call.module
        return None

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        """Nothing was asked for."""


@torch.no_grad()
def _decoder_layers(model: Model) -> list[nn.Module]:
    """The decoder layers in order: the members of a module list that hold the attention modules."""
    modules = _Modules()
    with engaged(model.hf, observers=(modules,)):
        _short_pass(model)
    lists = [module for module in model.hf.modules() if isinstance(module, nn.ModuleList)]
    owners = {id(part): layer for each in reversed(lists) for layer in each for part in layer.modules()}
    layers = [owners.get(id(modules.by_layer.get(index))) for index in range(model.n_layers)]
    found = [layer for layer in layers if layer is not None]
    if len(found) != model.n_layers:
        raise ProbeError(f"{type(model.hf).__name__} keeps its layers in no module list: its stream cannot be read")
    return found


def _short_pass(model: Model) -> None:
    ids = torch.arange(1, 9, device=model.device)[None] % model.vocab
    model.hf(input_ids=ids, use_cache=False)


def _states(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
