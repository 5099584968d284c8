"""What does one layer's attention compute with? An AttentionCall holds its operands and its mask."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from probe.kernels.contract import Mask


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One call of one layer's attention has these operands, after rotary embedding.

    query [batch, heads, queries, head_dim]; key [batch, kv_heads, keys, head_dim]; value [batch, kv_heads, keys,
    value_dim]. scale multiplies the scores. softcap and sinks ([heads], learned logits) are None where the model has
    none. module is the model's attention module, whose output projection comes next. edited lists the heads whose
    pattern an intervention has edited.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    edited: tuple[int, ...] = ()

    @property
    def queries(self) -> range:
        """Return the positions of the queries."""
        return range(self.mask.first_query, self.mask.first_query + self.query.shape[2])

    @property
    def keys(self) -> range:
        """Return the positions of the keys."""
        return range(self.mask.first_key, self.mask.first_key + self.key.shape[2])
