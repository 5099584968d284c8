"""The gradient filter: which heads lower the loss when their sinks are calibrated, from one backward pass.

With a gate g_h for each head that blends its output, z_h + g_h (z'_h - z_h), where z'_h is the calibrated output,

    score of head h = d (mean loss) / d g_h at g = 0,    in nats per unit of gate,

is to first order the change of the loss when h is calibrated alone. The exact filter of Yu et al. 2024 runs the set
once for each head instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from probe.analyses.act.classification import Scorer, losses
from probe.interventions import Blend, CalibrateSinks
from probe.models import Model


def gradients(model: Model, scorer: Scorer, intervention: CalibrateSinks) -> Tensor:
    """Return d (mean loss) / d (gate of each head) at gates 0, [layers, heads] float64, from one pass over the set."""
    gates = torch.zeros(model.n_layers, model.n_heads, device=model.device, requires_grad=True)
    weights = [parameter for parameter in model.hf.parameters() if parameter.requires_grad]
    answers = scorer.answers
    try:
        for parameter in weights:  # only the gates' gradients are wanted
            parameter.requires_grad_(False)
        with torch.enable_grad(), model.intervene(Blend(intervention, gates)):
            for places, scores in scorer.batches():
                loss = losses(scores, answers[places].to(scores.device)).sum() / len(answers)
                if loss.requires_grad:  # unless no prompt has a sink, or sinks keep all their weight
                    loss.backward()
    finally:
        for parameter in weights:
            parameter.requires_grad_(True)
    return (torch.zeros_like(gates) if gates.grad is None else gates.grad).double().cpu()
