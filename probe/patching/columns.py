"""Which columns of the prompts does a patch cover? END, the token of a role, the columns of a mask, or all.

Prompts are padded on the left, so END, the last token of every prompt, is the last column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.patching.pairs import Pairs

END, ALL = "END", "all"


def covered(pairs: Pairs, at: str | Tensor) -> Tensor:
    """Return [prompts, tokens] bool, True where a patch applies.

    at: "END", "all" (without padding), the name of a role, or the mask itself. Raises UsageError for another name or
    shape.
    """
    shape = pairs.clean.shape
    if isinstance(at, Tensor):
        if at.shape != shape or at.dtype != torch.bool:
            raise UsageError(f"a mask of columns must be {list(shape)} of bool, got {list(at.shape)} of {at.dtype}")
        return at
    if at == ALL:
        return torch.ones(shape, dtype=torch.bool) if pairs.padding is None else pairs.padding
    if at != END and at not in pairs.roles:
        raise UsageError(f"the columns must be {END}, {ALL} or a role among {list(pairs.roles)}, got {at!r}")
    mask = torch.zeros(shape, dtype=torch.bool)
    column = torch.full((shape[0],), pairs.end) if at == END else pairs.roles[at]
    mask[torch.arange(shape[0]), column] = True
    return mask
