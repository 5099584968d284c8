"""The matrix product of float32 on CPUs by the faster of the two libraries that torch has for it.

torch's ordinary product goes to MKL, which does not use AVX-512 on processors that are not Intel's; oneDNN, which
torch keeps for compiled linear layers, does, and takes half the time there. Where a processor has no AVX-512, or torch
no such layer, the ordinary product runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

# With fewer multiplications the call costs more than it saves.
WORTHWHILE = 1 << 20


def linear_serves(left: Tensor, right: Tensor) -> bool:
    """Return whether `linear` can and should compute left [rows, k] @ right [k, cols]."""
    return (
        left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and left.numel() * right.shape[1] >= WORTHWHILE
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(left: Tensor, right: Tensor) -> Tensor:
    """Return left [rows, k] @ right [k, cols] by oneDNN, in new memory."""
    # from rows with gaps between them it multiplies a thousand times more slowly
    weight = right.t().contiguous() if right.stride(0) == 1 else right.contiguous().t()
    return torch.ops.mkldnn._linear_pointwise(left.contiguous(), weight, None, "none", [], "")
