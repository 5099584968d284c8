"""Which columns of the prompts a patch covers: END, the token of a role, given ones, or all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.patching.pairs import Pairs

END, ALL = "END", "all"


def covered(pairs: Pairs, at: str | Tensor) -> Tensor:
    """[prompts, tokens] bool: True where a patch applies.

    at: "END", "all" (padding left out), the name of a role, or such a mask itself. Raises UsageError for another name
    or shape.
    """
    shape = pairs.clean.shape
    if isinstance(at, Tensor):
        if at.shape != shape or at.dtype != torch.bool:
            raise UsageError(f"columns must be {list(shape)} of bool, got {list(at.shape)} of {at.dtype}")
        return at
    if at == ALL:
        return torch.ones(shape, dtype=torch.bool) if pairs.padding is None else pairs.padding
    if at != END and at not in pairs.roles:
        raise UsageError(f"expected {END}, {ALL} or a role of {list(pairs.roles)}, got {at!r}")
    mask = torch.zeros(shape, dtype=torch.bool)
    column = torch.full((shape[0],), pairs.end) if at == END else pairs.roles[at]
    mask[torch.arange(shape[0]), column] = True
    return mask
