"""Which linear maps does an attention module apply to its input and to its heads' outputs? Measured, not looked up.

With biases left out, the value that a token offers to a KV head is x V (x: the module's input), and a head with output
z adds z O to what the module writes (row vectors). Models name and store V and O in many ways: fused, per head, with a
norm behind. So both are measured in one forward pass over sequences of one token, which stops behind each attention:

1. The module is given the rows of an identity matrix as its input. The values that come out are V, and a row of zeros
   gives the bias.
2. In the same call, the rows of another identity matrix take the place of its heads' outputs. The module
   then writes O, and its bias.
3. One more row holds random vectors. The maps must predict what the module does with them; where they do not (a gate,
   a normalised value), the module is not linear, and the errors say by how much.

Where a norm follows attention before the stream (Gemma 2, OLMo 2), O is what comes before that norm, and the norm is
named beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.engine.attention import engaged, text_config
from probe.engine.hooks import Stop, first, installed, states_of, with_states
from probe.engine.residual import ResidualStream
from probe.engine.seam import Seam
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """One layer's maps in float32, or float64 if the model is: V and O of the module docstring.

    value [kv_heads, hidden, value_dim]; output [heads, value_dim, hidden]; bias [hidden], what no head writes. norm:
    the norm between attention and the stream, or None. value_error, output_error, norm_error: distance between what
    the maps predict for a random row and what the module did, relative to the largest number there.
    """

    layer: int
    value: Tensor
    output: Tensor
    bias: Tensor
    norm: nn.Module | None
    value_error: float
    output_error: float
    norm_error: float


@torch.no_grad()
def visit_projections(
    hf: PreTrainedModel, seam: Seam, stream: ResidualStream, visit: Callable[[Projections], None]
) -> None:
    """Call `visit` with the maps of each layer in turn, so that those of a large model are never all held at once.

    The pass runs over max(hidden, heads x value_dim) + 2 tokens and computes no MLP and no logits.
    """
    width, hidden = seam.heads * seam.value_dim, int(text_config(hf).hidden_size)
    rows, random = max(hidden, width), torch.Generator().manual_seed(0)
    inputs, outputs = (_basis(rows, size, random).to(hf.device, hf.dtype) for size in (hidden, width))
    given = _Given(outputs.view(rows + 2, seam.heads, 1, seam.value_dim))

    def enter(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_states(args, options, inputs[:, None].to(states_of(args, options).device))

    def step(layer: int, forward: Callable[[Tensor], Any], entering: Tensor) -> Tensor:
        module = seam.modules[layer]
        writer = stream.writers(layer)[0] if stream.split else module
        norm = None if module in writer.modules() else writer
        written: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            written.append(first(output).view(rows + 2, -1))
            if len(written) == 1 + (norm is not None):
                raise Stop

        handles = [module.register_forward_pre_hook(enter, with_kwargs=True)]
        handles += [each.register_forward_hook(keep) for each in ([module, norm] if norm is not None else [writer])]
        with installed(*handles), suppress(Stop):
            forward(entering)
        value, _, value_error, _ = _linear(given.value[:, :, 0].flatten(1), inputs[-1], hidden)
        output, bias, output_error, predicted = _linear(written[0], outputs[-1], width)
        normed = None if norm is None else norm.forward(predicted.to(hf.dtype))
        visit(
            Projections(
                layer=layer,
                value=value.view(hidden, -1, seam.value_dim).transpose(0, 1),
                output=output.view(seam.heads, seam.value_dim, -1),
                bias=bias,
                norm=norm,
                value_error=value_error,
                output_error=output_error,
                norm_error=0.0 if normed is None else _distance(normed, written[1][-1]),
            )
        )
        return entering

    with engaged(hf, interventions=(given,)), stream.replacing(step):
        hf.base_model(input_ids=torch.ones(rows + 2, 1, dtype=torch.int64, device=hf.device), use_cache=False)


class _Given(Intervention):
    """Keeps the values of the latest attention call, and puts the given outputs in the place of its heads' outputs."""

    def __init__(self, outputs: Tensor) -> None:
        self._outputs = outputs
        self.value: Tensor = outputs

    def before(self, call: AttentionCall) -> AttentionCall:
        self.value = call.value
        return call

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        return self._outputs.to(output.device)


def _basis(rows: int, size: int, random: torch.Generator) -> Tensor:
    """Return [rows + 2, size]: the identity, zeros, and last a row of random numbers."""
    basis = torch.zeros(rows + 2, size)
    basis[:size] = torch.eye(size)
    basis[-1] = torch.randn(size, generator=random)
    return basis


def _linear(results: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor, float, Tensor]:
    """Return the map [size, n] that took the rows of `_basis` to `results`, bias, error and prediction."""
    results = results.to(torch.promote_types(results.dtype, torch.float32))
    bias = results[-2]
    matrix = results[:size] - bias
    predicted = last.to(matrix) @ matrix + bias
    return matrix, bias, _distance(results[-1], predicted), predicted


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
