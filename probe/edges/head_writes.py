"""What each head writes to the stream: its z times its rows of the output projection, measured and not looked up.

Where a norm follows attention (Gemma 2, OLMo 2), heads share what the norm divides by, and no head's write is its own.
A head's write is then its summand with the run's own divisor: with a = sum_h z_h W_h and the norm's gain g, the layer
writes c(a) g a and the head c(a) g (z_h W_h). The summands of a run always add up to what it writes. But where some
heads of a layer are cut, the others keep the divisor of their own run; patching z of those heads in the model would
give the rest another one. Without such a norm the two are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.edges.steps import LayerRun, Stop, forward, taken_apart
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.models import Model

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far the maps may be from the model on random z, relative to the largest number it writes."""


@dataclass(frozen=True, eq=False)
class HeadWrites:
    """The maps of one layer: output [heads, value_dim, hidden] and bias [hidden], the gain of a norm behind included.

    normed: whether a norm behind attention divides by the length of what it is given.
    """

    output: Tensor
    bias: Tensor
    normed: bool

    def scaled(self, z: Tensor, written: Tensor) -> Tensor:
        """z [prompts, heads, tokens, value_dim] times the norm's factor, found from what the layer wrote."""
        return z * self._factor(z, written)[:, None] if self.normed else z

    def of(self, scaled: Tensor) -> Tensor:
        """What each head writes, [prompts, heads, tokens, hidden], of scaled z; differences of z give differences."""
        return scaled @ self.output

    def _factor(self, z: Tensor, written: Tensor) -> Tensor:
        """[prompts, tokens, 1]: what the layer wrote, over the sum of the plain writes and the bias."""
        plain = self.of(z).sum(1) + self.bias
        size = plain.square().sum(-1, keepdim=True).clamp(min=torch.finfo(plain.dtype).tiny)
        return (written * plain).sum(-1, keepdim=True) / size

    def error(self, z: Tensor, written: Tensor) -> float:
        """How far what the maps say of z is from what was written, relative to its largest number."""
        told = self.of(z).sum(1) + self.bias
        if self.normed:
            told = told * self._factor(z, written)
        return float((told - written).abs().max() / written.abs().max())


@torch.no_grad()
def measured(model: Model) -> tuple[HeadWrites, ...]:
    """The maps of every layer, from one forward pass over heads x value_dim + 3 sequences of one token.

    Raises ProbeError where what is written is not linear in z, up to a norm.
    """
    width, value_dim = model.n_heads * model.seam.value_dim, model.seam.value_dim
    random = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    basis = torch.cat([torch.eye(width), torch.zeros(1, width), random]).to(model.device, model.dtype)
    basis = basis.view(len(basis), model.n_heads, 1, value_dim)
    found: list[HeadWrites] = []

    def step(run: LayerRun, stream: Tensor) -> Tensor:
        writer, attention = model.stream.writers(run.layer)[0], model.seam.modules[run.layer]
        inner: dict[str, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inner["plain"] = output[0] if isinstance(output, tuple) else output

        def stop(z: Tensor, written: Tensor) -> Tensor:
            behind = attention not in writer.modules()
            plain = inner["plain"].view_as(written) if behind else written
            gain = _gain(writer, written) if behind else None
            found.append(_maps(model, run.layer, plain[:, 0], written[:, 0], basis, gain))
            raise Stop

        handle = attention.register_forward_hook(keep)
        try:
            run.run(stream, z=lambda _: basis, attended=stop)
        except Stop:
            pass
        finally:
            handle.remove()
        return stream

    with taken_apart(model, step):
        ids = torch.ones(len(basis), 1, dtype=torch.int64)
        forward(model, ids, None)
    return tuple(found)


def _maps(model: Model, layer: int, plain: Tensor, written: Tensor, basis: Tensor, gain: Tensor | None) -> HeadWrites:
    """The maps from what attention gave (`plain`) and wrote for the basis; checked on the last rows, random z."""
    bias = plain[-3]
    output = (plain[:-3] - bias).view(model.n_heads, -1, plain.shape[-1])
    if gain is not None:
        output, bias = output * gain, bias * gain
    maps = HeadWrites(output.contiguous(), bias, normed=gain is not None)
    error = maps.error(basis[-2:], written[-2:, None])
    if not error < TOLERANCE[model.dtype]:
        raise ProbeError(
            f"{model.name} has no edges: what attention writes in layer {layer} is off by {error:.2g} from a linear map"
        )
    return maps


def _gain(norm: nn.Module, like: Tensor) -> Tensor:
    """The gain [hidden] of a norm that divides by the root mean square, from a vector of +1 and -1."""
    signs = 1 - 2 * (torch.arange(like.shape[-1], device=like.device) % 2).to(like.dtype)
    plus, minus = norm.forward(torch.stack([signs, -signs])[:, None])[:, 0]  # forward: past the hooks
    return (plus - minus) / 2 * signs
