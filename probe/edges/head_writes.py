"""What each head writes: its z times its rows of the output projection, measured and not looked up.

Where a norm follows attention (Gemma 2, OLMo 2), what a layer writes to the stream is norm(sum_h z_h W_h + b), and no
head's share of it is its own. Edges then carry what heads write before that norm, and each receiver has a copy of the
norm, as it has one of the norm before it: it reads norm(sum over its senders of z_h W_h + b). So a circuit of nodes is
still activation patching of all others, and no head is heard except through its edges.
"""

from __future__ import annotations

from contextlib import suppress
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
    """The map of one layer: output [heads, value_dim, hidden] and bias [hidden]; norm is what follows, or None."""

    output: Tensor
    bias: Tensor
    norm: nn.Module | None

    def of(self, z: Tensor) -> Tensor:
        """What each head writes, [prompts, heads, tokens, hidden], of its z; differences of z give differences."""
        return z @ self.output

    def sum(self, z: Tensor) -> Tensor:
        """What all heads and the bias write, [prompts, tokens, hidden], before a norm that follows."""
        return self.of(z).sum(1) + self.bias

    def behind(self, plain: Tensor) -> Tensor:
        """What reaches the stream of `plain`, sums of writes [..., tokens, hidden]."""
        return plain if self.norm is None else self.norm.forward(plain)  # forward: past the hooks

    def moved(self, plain: Tensor, changes: Tensor) -> Tensor:
        """How the stream moves for small changes [prompts, heads, tokens, hidden] of writes whose sum is `plain`."""
        if self.norm is None:
            return changes
        with torch.enable_grad():  # the pull-back is linear in u, and its gradient for u is the push-forward
            sums = plain.detach()[:, None].expand_as(changes).clone().requires_grad_()
            u = torch.zeros_like(sums, requires_grad=True)
            (pulled,) = torch.autograd.grad(self.behind(sums), sums, u, create_graph=True)
            return torch.autograd.grad(pulled, u, changes)[0]


@torch.no_grad()
def measured(model: Model) -> tuple[HeadWrites, ...]:
    """The maps of every layer, from one forward pass over heads x value_dim + 3 sequences of one token.

    Raises ProbeError where what is written is not linear in z, up to a norm that follows.
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
            norm = writer if behind else None
            found.append(_maps(model, run.layer, plain[:, 0], written[:, 0], basis, norm))
            raise Stop

        handle = attention.register_forward_hook(keep)
        try:
            with suppress(Stop):
                run.run(stream, z=lambda _: basis, attended=stop)
        finally:
            handle.remove()
        return stream

    with taken_apart(model, step):
        ids = torch.ones(len(basis), 1, dtype=torch.int64)
        forward(model, ids, None)
    return tuple(found)


def _maps(
    model: Model, layer: int, plain: Tensor, written: Tensor, basis: Tensor, norm: nn.Module | None
) -> HeadWrites:
    """The map from what attention gave (`plain`) and wrote for the basis; checked on the last rows, random z."""
    bias = plain[-3]
    output = (plain[:-3] - bias).view(model.n_heads, -1, plain.shape[-1])
    maps = HeadWrites(output.contiguous(), bias, norm)
    told, wanted = maps.behind(maps.sum(basis[-2:])), written[-2:, None]
    error = float((told - wanted).abs().max() / wanted.abs().max())
    if not error < TOLERANCE[model.dtype]:
        raise ProbeError(
            f"{model.name} has no edges: what attention writes in layer {layer} is off by {error:.2g} from a linear map"
        )
    return maps
