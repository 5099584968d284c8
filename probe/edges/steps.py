"""How can one layer of any architecture be run on several streams? The caller takes a forward pass apart.

Edge patching needs runs of a layer on a separate stream for each receiver, up to the receiver's operands. The model's
code computes everything: embedding, masks and positions reach each layer as in an ordinary pass, and a run of a layer
is the layer's own forward, with two places where the caller may step in.

    operands   is given the queries, keys and values, and returns those to attend with
    attended   is given the heads' outputs and what attention wrote, and returns what is written

Each of them may end the layer's run by raising `Stop` (`probe.engine.hooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from probe.engine.hooks import Stop, first, installed, with_first
from probe.errors import ProbeError
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall

if TYPE_CHECKING:
    from probe.models import Model


@dataclass(frozen=True)
class LayerRun:
    """A layer in one forward pass, with what the model hands it beside the stream; it can run in that pass only.

    Streams and writes are [prompts, tokens, hidden], z is [prompts, heads, tokens, value_dim].
    """

    layer: int
    _forward: Callable[[Tensor], Any]
    _seat: _Seat

    def run(
        self,
        stream: Tensor,
        *,
        operands: Callable[[AttentionCall], AttentionCall] | None = None,
        attended: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return what the MLP writes when `stream` enters the layer. The two callbacks: see the module docstring."""
        seat = self._seat
        seat.operands, seat.attended, seat.stream, seat.written = operands, attended, stream, None
        try:
            self._forward(stream)
        finally:
            seat.operands = seat.attended = seat.stream = seat.z = None
        if seat.written is None:
            raise ProbeError(f"layer {self.layer} ran without its MLP: this architecture has no edges")
        return seat.written.view_as(stream)

    def read(self, stream: Tensor) -> AttentionCall:
        """Return the queries, keys and values that attention reads from `stream`; nothing behind them is computed."""
        found: list[AttentionCall] = []

        def stop(call: AttentionCall) -> AttentionCall:
            found.append(call)
            raise Stop

        with suppress(Stop):
            self.run(stream, operands=stop)
        return found[0]


class _Seat(Intervention):
    """The place where the layer that runs now meets its caller."""

    def __init__(self) -> None:
        self.operands: Callable[[AttentionCall], AttentionCall] | None = None
        self.attended: Callable[[Tensor, Tensor], Tensor] | None = None
        self.stream: Tensor | None = None
        self.z: Tensor | None = None
        self.written: Tensor | None = None

    def before(self, call: AttentionCall) -> AttentionCall:
        if self.operands is None:
            return call
        chosen = self.operands(call)
        return replace(call, query=chosen.query, key=chosen.key, value=chosen.value)

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        self.z = output
        return output

    def on_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.attended is None or self.z is None or self.stream is None:
            return output
        states = first(output)
        return with_first(output, self.attended(self.z, states.view_as(self.stream)).view_as(states))

    def on_mlp(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.written = first(output)


@contextmanager
def taken_apart(model: Model, step: Callable[[LayerRun, Tensor], Tensor]) -> Iterator[None]:
    """Let forward passes inside call step(run, stream that enters) for each layer; its result leaves the layer.

    Raises ProbeError for a model whose layers are not the sum of an attention and an MLP.
    """
    stream, seat = model.stream, _Seat()
    if not stream.split:
        raise ProbeError(
            f"{type(model.hf).__name__} has no edges, because its layers are no sum of attention and MLP: patch its "
            "heads instead (probe.patching)"
        )
    handles = []

    def by(layer: int, own: Callable[[Tensor], Any], states: Tensor) -> Tensor:
        return step(LayerRun(layer, own, seat), states)

    for layer in range(model.n_layers):
        attention, mlp = stream.writers(layer)
        handles.append(attention.register_forward_hook(seat.on_attention))
        handles.append(mlp.register_forward_hook(seat.on_mlp))
    with installed(*handles), model.intervene(seat), stream.replacing(by):
        yield


def forward(model: Model, ids: Tensor, padding: Tensor | None) -> Tensor:
    """Return the logits at the last column, [prompts, vocab]."""
    return model.logits(ids, padding=padding, logits_to_keep=1)[:, -1]
