"""What would patching each head do? Attribution patching estimates it for all heads from a few passes (to first order).

With LD the logit difference and z a head's output, the estimate of the effect of patching z is

    (z_corrupted - z_clean) . dLD/dz,

with the gradient of the clean run (Nanda 2023; Syed et al. 2023). With `steps` m the gradient is the mean over m runs
whose embeddings lie between the corrupted prompt's e' and the clean prompt's e, at e' + t (e - e') (Hanna et al. 2024).
We take t at the midpoints (k + 1/2) / m, k = 0 ... m - 1, which favour neither end. Where attention is saturated, the
gradient is flat and the estimate too small; `probe.patching.places` is exact.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.engine.hooks import installed
from probe.errors import UsageError
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall
from probe.patching.columns import END, covered
from probe.patching.effects import Effects, joined
from probe.patching.runs import activations

if TYPE_CHECKING:
    from probe.models import Model
    from probe.patching.pairs import Pairs


def attribution(
    model: Model, pairs: Pairs, *, at: str | Tensor = END, steps: int | None = None, batch: int = 20
) -> Effects:
    """Return the estimated effect of z of every head on the logit difference.

    at: "END", "all", the name of a role, or [prompts, tokens] bool. steps: None takes the clean gradient, m the mean of
    m gradients between the two prompts. batch: number of prompts that run at once. Raises UsageError for fewer than one
    step.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    points = [1.0] if steps is None else [(k + 0.5) / steps for k in range(steps)]
    whole = covered(pairs, at)
    parts = []
    for rows, part in pairs.batches(batch):
        mask = whole[rows, -part.clean.shape[1] :]
        clean, corrupted = activations(model, part, part.clean), activations(model, part, part.corrupted)
        estimate = torch.zeros(model.n_layers, model.n_heads, len(part))
        for point in points:
            for layer, gradient in enumerate(_gradients(model, part, point)):
                change = ((corrupted.z[layer] - clean.z[layer]) * gradient).sum(-1).float().cpu()
                estimate[layer] += (change * mask[:, None]).sum(-1).T / len(points)
        patched = clean.difference + estimate.flatten(0, 1)
        parts.append((rows, Effects(tuple(model.heads()), patched, clean.difference, corrupted.difference)))
    return joined(parts, prompts=len(pairs))


class _Outputs(Intervention):
    """Change nothing, and keep z of every layer in the graph of gradients."""

    def __init__(self) -> None:
        self.z: dict[int, Tensor] = {}

    def after(self, call: AttentionCall, output: Tensor) -> Tensor:
        self.z[call.layer] = output if output.requires_grad else output.requires_grad_()
        return self.z[call.layer]


def _gradients(model: Model, pairs: Pairs, point: float) -> tuple[Tensor, ...]:
    """Return dLD/dz by layer, [prompts, heads, tokens, value_dim], at `point` on the way from corrupted to clean."""
    outputs = _Outputs()
    with torch.enable_grad(), _between(model, pairs, point), model.intervene(outputs):
        logits = model.logits(pairs.clean, padding=pairs.padding, logits_to_keep=1)
        difference = pairs.logit_difference(logits).sum()
    return torch.autograd.grad(difference, [outputs.z[layer] for layer in range(model.n_layers)])


def _between(model: Model, pairs: Pairs, point: float) -> AbstractContextManager[None]:
    """Let the embeddings of a pass over the clean prompts lie at `point` on the way from the corrupted prompts'."""
    if point == 1:
        return nullcontext()
    embed = model.hf.get_input_embeddings()
    with torch.no_grad():
        other = embed(pairs.corrupted.to(model.device))

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return other + point * (output - other)

    return installed(embed.register_forward_hook(hook))
