"""What must a model be told so that padding changes nothing?

A padded batch goes through a model with two facts beside its ids: which columns are padding (the attention mask), and
the position of every token, counted from the first token that is no padding. The second matters to models with learned
positions, and is left out for models that take none. `logits_to_keep` limits the logits to the last columns: those of
8,192 tokens over a whole vocabulary are gigabytes.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def forward_options(
    hf: PreTrainedModel, padding: Tensor | None, *, columns: int, logits_to_keep: int = 0
) -> dict[str, Any]:
    """Return the options of a forward pass over the last `columns` columns of a batch.

    padding: [batch, tokens], True for tokens; the columns before the last ones stand in the cache. None is no padding.
    logits_to_keep: number of last columns whose logits are computed, by models that can limit them; 0 keeps all.
    """
    accepted = inspect.signature(hf.forward).parameters
    options: dict[str, Any] = {}
    if padding is not None:
        padding = padding.to(hf.device)
        options["attention_mask"] = padding
        if "position_ids" in accepted:
            options["position_ids"] = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -columns:]
    if logits_to_keep and "logits_to_keep" in accepted:
        options["logits_to_keep"] = logits_to_keep
    return options
