"""Attention as it is written, with the whole map, which a test edits by hand: what interventions must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "dense_for_tests"
# map [batch, heads, queries, keys] float64, layer, position of the first query -> map
EditMap = Callable[[Tensor, int, int], Tensor]
# z [batch, heads, queries, value_dim], layer, position of the first query -> z
EditOutput = Callable[[Tensor, int, int], Tensor]

_edits: list[tuple[EditMap, EditOutput]] = []


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (key, value))
    s = (query.shape[-1] ** -0.5 if scaling is None else scaling) * (query.double() @ k.mT)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    assert attention_mask is not None
    visible = attention_mask[..., : key.shape[2]] == 0
    s = s.masked_fill(~visible, -math.inf)
    if s_aux is not None:
        s = torch.cat([s, s_aux.double()[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    p = s.softmax(-1).nan_to_num(0)[..., : key.shape[2]]
    edit_map, edit_output = _edits[-1]
    first = key.shape[2] - query.shape[2]  # no test here has a cache that forgets
    z = edit_output(edit_map(p, module.layer_idx, first) @ v, module.layer_idx, first)
    return z.to(query.dtype).transpose(1, 2).contiguous(), p


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def dense(
    hf: PreTrainedModel,
    edit_map: EditMap = lambda p, layer, first: p,
    edit_output: EditOutput = lambda z, layer, first: z,
) -> Iterator[None]:
    """Run the model's attention through whole maps, edited by these functions."""
    former = hf.config._attn_implementation
    _edits.append((edit_map, edit_output))
    try:
        hf.set_attn_implementation(NAME)
        yield
    finally:
        hf.set_attn_implementation(former)
        _edits.pop()
