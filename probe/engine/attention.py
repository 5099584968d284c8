"""How can one function measure and change the attention of any model? transformers looks its attention up by name.

1. `probe_attention` is registered under the name "probe" with transformers' `AttentionInterface`. Every architecture
   that uses the interface calls it once for each layer, with queries, keys and values after rotary embedding.
2. `probe_mask` is registered beside it. Without a mask function transformers would pass no mask, and padded batches,
   sliding windows and packed sequences would be silently wrong. Ours returns the structure of the mask
   (`probe.kernels.contract.Mask`) instead of a queries x keys tensor.
3. `engaged(hf, ...)` switches a model to that name for the time of a context. For each call, the interventions change
   the operands, then the pattern of weights; the kernels compute the output and the statistics that observers request;
   then the interventions change the output.

The state is a ContextVar, so nested contexts compose and threads do not see one another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from probe.errors import ProbeError
from probe.interventions.base import Intervention
from probe.interventions.call import AttentionCall
from probe.interventions.pattern import Pattern
from probe.kernels.contract import Mask, Request, Statistics

NAME = "probe"


class Observer(Protocol):
    """An observer requests statistics of the attention calls inside its context, and is handed them."""

    def request(self, call: AttentionCall) -> Request | None:
        """Return the statistics to compute for this call; None leaves the call out."""
        ...

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        """Take the statistics that were requested for this call."""
        ...


@dataclass(frozen=True)
class Active:
    """The observers and interventions in force for one model; interventions as they run, and as they were declared."""

    observers: tuple[Observer, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    declared: tuple[Intervention, ...] = ()
    implementation: str = "auto"


# Keyed by the identity of the text configuration that a model's attention modules share, so that two models in nested
# contexts do not record into one another.
_active: ContextVar[dict[int, Active]] = ContextVar("probe_attention")


@contextmanager
def engaged(
    hf: PreTrainedModel,
    *,
    observers: tuple[Observer, ...] = (),
    interventions: tuple[Intervention, ...] = (),
    implementation: str = "auto",
) -> Iterator[None]:
    """Run the model's attention through the engine inside the context; its former implementation returns at the end."""
    key = id(text_config(hf))
    outer = _active.get({})
    mine = outer.get(key, Active())
    mine = replace(
        mine,
        observers=mine.observers + observers,
        interventions=mine.interventions + tuple(each.running() for each in interventions),
        declared=mine.declared + interventions,
        implementation=implementation if implementation != "auto" else mine.implementation,
    )
    former: str = text_config(hf)._attn_implementation  # pyright: ignore[reportAssignmentType]  # set once loaded
    token = _active.set({**outer, key: mine})
    try:
        switch(hf, NAME)
        yield
    finally:
        _active.reset(token)
        switch(hf, former)


def interventions_on(hf: PreTrainedModel) -> tuple[Intervention, ...]:
    """Return the interventions in force for a model here, in their order."""
    return active_on(text_config(hf)).declared


def active_on(config: object) -> Active:
    """Return what is in force for the model whose attention modules hold this text configuration."""
    return _active.get({}).get(id(config), Active())


def text_config(hf: PreTrainedModel):
    """Return the configuration of the language model, which its attention modules hold; vision towers have another."""
    return hf.config.get_text_config(decoder=True)


def switch(hf: PreTrainedModel, name: str) -> None:
    """Make the language model take its attention from this name. Raises ProbeError if it bypasses the interface."""
    text = text_config(hf)
    if text._attn_implementation == name:
        return
    if not hf._can_set_attn_implementation():
        raise ProbeError(
            f"{type(hf).__name__} is not supported: its attention bypasses transformers' AttentionInterface, where "
            "probe measures; use a model whose transformers class supports sdpa"
        )
    if text is hf.config:
        hf.set_attn_implementation(name)
    else:  # a vision tower keeps its own attention
        part = next(part for part in hf.config.sub_configs if getattr(hf.config, part) is text)
        hf.set_attn_implementation({part: name})


def probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Return the attention output [batch, queries, heads, value_dim]; transformers defines the arguments."""
    if dropout:
        raise ProbeError("attention dropout is on: call model.hf.eval() before running probe")
    if position_bias is not None:
        raise ProbeError(
            f"{type(module).__name__} adds a position bias to its scores, which the kernels cannot represent: "
            "this architecture is not supported"
        )
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    call = AttentionCall(
        layer=getattr(module, "layer_idx", -1),
        module=module,
        query=query,
        key=key,
        value=value,
        mask=_as_mask(attention_mask, causal=bool(is_causal), queries=query.shape[2], keys=key.shape[2]),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
    )
    active = active_on(getattr(module, "config", None))
    for intervention in active.interventions:
        call = intervention.before(call)
    pattern = Pattern(call, active.implementation)
    for intervention in active.interventions:
        intervention.repattern(call, pattern)
    call = replace(call, edited=tuple(pattern.edited))
    asked = [(observer, request) for observer in active.observers if (request := observer.request(call)) is not None]
    output, statistics = pattern.whole(asked[0][1] if asked else Request())
    for index, (observer, request) in enumerate(asked):
        if index > 0:  # requests of different recordings do not merge: each is computed
            statistics = pattern.whole(request)[1]
        observer.observe(call, statistics.detach())
    for intervention in active.interventions:
        output = intervention.after(call, output)
    return output.to(query.dtype).transpose(1, 2).contiguous(), None


def _as_mask(given: Mask | Tensor | None, *, causal: bool, queries: int, keys: int) -> Mask:
    """Return the mask as structure. A tensor is [batch, heads or 1, queries, keys], boolean or of 0 and -inf."""
    if isinstance(given, Mask):
        return given
    if given is None:
        return Mask(causal=causal, first_query=keys - queries)
    if given.dtype != torch.bool:
        lowest = torch.finfo(given.dtype).min
        visible = given == 0
        if not (visible | (given <= lowest)).all():
            raise ProbeError(
                "the model passes an attention mask with numbers other than 0 and -inf, a bias that the kernels cannot "
                "represent: this architecture is not supported"
            )
        given = visible
    return Mask(causal=False, pairs=given[..., :keys], first_query=keys - queries)


def probe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> Mask:
    """Return the mask's structure; transformers defines the arguments.

    Causal, sliding-window and bidirectional masks, padded or not, stay symbolic. Any other mask (packed sequences,
    chunks, image blocks) is evaluated to a [batch, 1, queries, keys] boolean, once in each forward pass.
    """
    first_query, first_key = int(q_offset), int(kv_offset)
    padding = _padding(attention_mask, kv_length, first_key)
    structure = Mask(keys=padding, first_query=first_query, first_key=first_key)
    if mask_function is causal_mask_function:
        return structure
    if mask_function is bidirectional_mask_function:
        return replace(structure, causal=False)
    # transformers forbids the skip when an overlay is in play
    window = local_size if allow_is_causal_skip else None
    if window is not None and _is_window(mask_function, window, first_query, q_length, device):
        return replace(structure, window=window)
    pairs = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=first_query,
        kv_offset=first_key,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    return Mask(causal=False, pairs=pairs, first_query=first_query, first_key=first_key)


def _padding(attention_mask: Tensor | None, keys: int, first_key: int) -> Tensor | None:
    """Return [batch, keys] bool from a padding mask that is longer (sliding cache) or shorter (static cache)."""
    if attention_mask is None:
        return None
    padding = attention_mask[:, first_key : first_key + keys].bool()
    if padding.shape[1] < keys:
        padding = nn.functional.pad(padding, (0, keys - padding.shape[1]))
    return None if bool(padding.all()) else padding


def _is_window(mask_function: Callable, window: int, first: int, queries: int, device: torch.device | str) -> bool:
    """Return whether the function is a plain causal window; every query's last, first and first hidden key are tried.

    Chunked attention has the same `local_size` argument but hides keys at the borders of chunks.
    """
    query = torch.arange(first, first + queries, device=device)
    zero = torch.zeros_like(query)

    def visible(key: Tensor) -> Tensor:
        return torch.as_tensor(mask_function(zero, zero, query, key), device=device).expand_as(query)

    oldest = query - window + 1
    return bool(
        visible(query).all()
        and not visible(query + 1).any()
        and (visible(oldest.clamp(min=0))).all()
        and not visible(oldest - 1)[oldest >= 1].any()
    )


# Under torch.compile both are graph breaks: what observers and interventions do is not for tracing.
AttentionInterface.register(NAME, torch.compiler.disable(probe_attention))
AttentionMaskInterface.register(NAME, torch.compiler.disable(probe_mask))
