"""What does each head write to the residual stream? Its output z times its rows of the output projection.

`probe.engine.projections` measures the projection. A head h with output z_h and rows W_h writes z_h W_h, and a layer's
attention writes the sum over its heads, plus a bias b.

Where a norm follows attention (Gemma 2, OLMo 2), the layer writes norm(sum_h z_h W_h + b), and the share of one head
depends on all others. An edge then carries what its head writes before that norm, and each receiver has a copy of the
norm, as it has a copy of the norm before itself: it reads norm(sum over its senders of z_h W_h + b). With this
definition a circuit of nodes is the same as activation patching of all other nodes, and a head reaches a receiver only
through its edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.engine.projections import Projections, visit_projections
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.models import Model

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest error of the maps on random z, relative to the largest number that the model writes."""


@dataclass(frozen=True, eq=False)
class HeadWrites:
    """The map of one layer: output [heads, value_dim, hidden] and bias [hidden]; norm: behind it, or None."""

    output: Tensor
    bias: Tensor
    norm: nn.Module | None

    def of(self, z: Tensor) -> Tensor:
        """Return what each head writes, [prompts, heads, tokens, hidden], for its z; differences give differences."""
        return z @ self.output

    def sum(self, z: Tensor) -> Tensor:
        """Return what all heads and the bias write, [prompts, tokens, hidden], before a norm that follows."""
        return self.of(z).sum(1) + self.bias

    def behind(self, plain: Tensor) -> Tensor:
        """Return what reaches the stream if the sum of writes is `plain` [..., tokens, hidden]."""
        return plain if self.norm is None else self.norm.forward(plain)  # forward: past the hooks

    def moved(self, plain: Tensor, changes: Tensor) -> Tensor:
        """Return the change of the stream for small changes [prompts, heads, tokens, hidden] of writes, sum `plain`."""
        if self.norm is None:
            return changes
        with torch.enable_grad():  # the pull-back is linear in u, and its gradient for u is the push-forward
            sums = plain.detach()[:, None].expand_as(changes).clone().requires_grad_()
            u = torch.zeros_like(sums, requires_grad=True)
            (pulled,) = torch.autograd.grad(self.behind(sums), sums, u, create_graph=True)
            return torch.autograd.grad(pulled, u, changes)[0]


def head_writes(model: Model) -> tuple[HeadWrites, ...]:
    """Return the maps of every layer. Raises ProbeError where what attention writes is not linear in z."""
    maps: list[HeadWrites] = []

    def visit(found: Projections) -> None:
        error = max(found.output_error, found.norm_error)
        if not error < TOLERANCE[model.dtype]:
            raise ProbeError(
                f"{model.name} has no edges: what attention writes in layer {found.layer} is off by {error:.2g} from "
                "a linear map of its heads' outputs; patch its heads instead (probe.patching)"
            )
        output, bias = found.output.contiguous().to(model.dtype), found.bias.to(model.dtype)
        maps.append(HeadWrites(output, bias, found.norm))

    visit_projections(model.hf, model.seam, model.stream, visit)
    return tuple(maps)
