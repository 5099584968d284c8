"""How do TransformerLens's hooks and the engine's statistics work on the same forward pass? By delegation.

A TransformerLens bridge wraps a Hugging Face model. It computes attention itself, by a matmul and a softmax, so that
its patterns can be hooked, and never calls a registered attention function. But each of its attention bridges keeps the
original Hugging Face module, whose projections are hooked bridges already. Here an attention bridge hands its call to
that module: hook_q, hook_k, hook_v, hook_z and hook_result fire, and the attention in between is the engine's.

Some hooks need what only the bridge's arithmetic produces: hook_pattern, hook_attn_scores, hook_rot_q, hook_rot_k and
the inputs of single heads. While such a hook is attached to a layer, that layer takes the bridge's path. This is
decided for each layer at every call.

Booting a bridge replaces submodules of the Hugging Face object and makes its attention eager. So the bridge is booted
on a second module tree over the same parameters, buffers and configuration: no weight is copied, and `model.hf` does
not change.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probe.engine.attention import active_on, engaged, switch, text_config
from probe.errors import ProbeError
from probe.kernels.blocks import visible_pairs
from probe.kernels.contract import Mask

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Hook points of an attention bridge that fire when its call is handed to the Hugging Face module too.
SERVED = frozenset({"hook_in", "hook_out", "hook_result", "hook_hidden_states"})


def lens(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, implementation: str = "auto") -> TransformerBridge:
    """Return a TransformerLens bridge over the weights of `hf`, whose attention runs through the engine.

    `hf` itself does not change, and the bridge's `to_tokens(text)` returns the ids of `probe.tokens.tokenize`. Raises
    ProbeError for an architecture that TransformerLens has no bridge for.
    """
    from transformer_lens.model_bridge.sources import _bridge_builder as builder

    former = text_config(hf)._attn_implementation
    twin = second_tree(hf)
    try:
        bridge = builder.build_bridge_from_module(
            twin,
            type(hf).__name__,
            hf_config=copy.deepcopy(hf.config),
            device=hf.device,
            model_name=hf.config.name_or_path or type(hf).__name__,
        )
    except ValueError as error:
        raise ProbeError(
            f"TransformerLens has no bridge for {type(hf).__name__}: use model.hf or model.nnsight"
        ) from error
    finally:
        switch(hf, former)  # pyright: ignore[reportArgumentType]  # set once loaded
    # Given to the builder, the tokenizer would be loaded anew by name, with a BOS token that it does not add by itself.
    own = copy.deepcopy(tokenizer)
    if own.pad_token is None:
        own.pad_token = own.eos_token
    bridge.tokenizer = own
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = builder.detect_tokenizer_bos_eos(own)
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos
    return through_engine(bridge, implementation=implementation)


def second_tree(hf: PreTrainedModel) -> PreTrainedModel:
    """Return a second module tree over the same parameters, buffers and configuration objects."""
    shared = [*hf.parameters(), *hf.buffers()]
    shared += [module.config for module in hf.modules() if hasattr(module, "config")]
    return copy.deepcopy(hf, {id(item): item for item in shared})


def through_engine(bridge: TransformerBridge, *, implementation: str = "auto") -> TransformerBridge:
    """Hand the bridge's attention to the engine from now on, and return the bridge; a second call changes nothing."""
    twin: Any = bridge.original_model
    if getattr(twin, "_probe_engaged", False):
        return bridge
    attentions = [block.attn for block in bridge.blocks if hasattr(block, "attn")]
    for attention in attentions:
        # a bridge takes an ordinary assignment for a component's
        object.__setattr__(attention, "forward", _handed_on(attention, attention.forward))
    forward = twin.forward

    @functools.wraps(forward)
    def engine_forward(*args: Any, **kwargs: Any) -> Any:
        with engaged(twin, implementation=implementation):
            return forward(*args, **kwargs)

    twin.forward = engine_forward
    object.__setattr__(bridge, "forward", _without_unasked_cache(bridge.forward))
    twin._probe_engaged = True
    return bridge


def _without_unasked_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a bridge's forward that keeps keys and values only where they are returned or requested.

    The model's configuration would keep those of every layer in every call and drop them with its output.
    """

    @functools.wraps(forward)
    def lean(input: Any, return_type: str | None = "logits", *args: Any, **kwargs: Any) -> Any:
        if return_type != "logits_and_cache":
            kwargs.setdefault("use_cache", False)
        return forward(input, return_type, *args, **kwargs)

    return lean


def _handed_on(attention: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of an attention bridge: the Hugging Face module where its hooks allow it, else `own`."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    exchange = _components(attention)

    def forward(*args: Any, **kwargs: Any) -> Any:
        hooked = _hooked(attention)
        if hooked is None and exchange is not None:
            with _exchanged(attention.original_component, exchange):
                output = AttentionBridge.forward(attention, *args, **kwargs)
            return output
        _refuse_active(attention, hooked)
        return _own_path(attention, own, args, kwargs)

    return functools.wraps(own)(forward)


def _hooked(attention: Any) -> str | None:
    """Return the name of a hook or switch of the attention bridge that only its own path serves, or None."""
    for name, point in attention.named_children():
        if name.startswith("hook_") and name not in SERVED and (point.has_hooks() or point._forward_hooks):
            return name
    for flag in ("use_split_qkv_input", "use_attn_in"):
        if getattr(attention.config, flag, False):
            return flag
    return None


def _refuse_active(attention: Any, hooked: str | None) -> None:
    """Raise ProbeError if a recording or an intervention needs this layer."""
    module = attention.original_component
    layer = getattr(module, "layer_idx", -1)
    active = active_on(getattr(module, "config", None))
    watched = any(layer in getattr(observer, "layers", (layer,)) for observer in active.observers)
    changed = any(
        layer in {head.layer for head in intervention.heads_named} or not intervention.heads_named
        for intervention in active.interventions
    )
    if not (watched or changed):
        return
    what = "recorded" if watched else "changed by an intervention"
    if hooked is None:
        raise ProbeError(
            f"layer {layer} cannot be {what} under TransformerLens: the fused projection of "
            f"{type(module).__name__} cannot be split; use model.hf or model.nnsight"
        )
    raise ProbeError(
        f"layer {layer} cannot be {what} while {hooked} is in use there, which runs TransformerLens's own attention: "
        "remove that hook, or leave the layer out"
    )


def _own_path(attention: Any, own: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run the bridge's own attention, with the mask as the tensor that it expects."""
    module = attention.original_component
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Mask):
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        kwargs["attention_mask"] = _added(mask, states, kwargs.get("past_key_values"), layer=module.layer_idx)
    config = module.config
    former = config._attn_implementation
    config._attn_implementation = "eager"  # where the own path is the Hugging Face module's, with its weights
    try:
        return own(*args, **kwargs)
    finally:
        config._attn_implementation = former


def _added(mask: Mask, states: Tensor, cache: Any, *, layer: int) -> Tensor:
    """Return what the mask adds to the scores: [batch or 1, heads or 1, queries, keys], 0 or the lowest number."""
    queries = states.shape[1]
    if mask.pairs is not None:
        keys = mask.pairs.shape[-1]
    elif mask.keys is not None:
        keys = mask.keys.shape[-1]
    else:
        keys = queries if cache is None else cache.get_mask_sizes(queries, layer)[0]
    visible = visible_pairs(slice(0, queries), slice(0, keys), mask, states.device)
    return torch.zeros(visible.shape, dtype=states.dtype, device=states.device).masked_fill(
        ~visible, torch.finfo(states.dtype).min
    )


def _components(attention: Any) -> dict[str, nn.Module] | None:
    """Return the hooked projections that stand for the module's during a call, by name; None where none can."""
    from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge

    module = attention.original_component
    exchange: dict[str, nn.Module] = {}
    output = getattr(attention, "o", None)
    for name, child in module.named_children():
        if output is not None and child in (output, output.original_component):
            exchange[name] = _Output(attention)
    if not isinstance(attention, JointQKVAttentionBridge):
        return exchange
    fused = attention.submodules["qkv"].name
    joined = next((each for each in (_Stacked(attention), _Interleaved(attention)) if each.equals_fused(fused)), None)
    return None if joined is None or fused is None else exchange | {fused: joined}


@contextmanager
def _exchanged(module: nn.Module, exchange: dict[str, nn.Module]) -> Iterator[None]:
    former = {name: module._modules[name] for name in exchange}
    module._modules.update(exchange)
    try:
        yield
    finally:
        module._modules.update(former)


class _Part(nn.Module):
    """A stand-in for a projection during a call. It holds the bridge without owning it, so that no tree is circular."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        object.__setattr__(self, "attention", attention)


class _Output(_Part):
    """The output projection with hook_z, and with hook_result if the bridge is set to return the results of heads."""

    def forward(self, states: Tensor) -> Tensor:
        attention: Any = self.attention
        if not getattr(attention.config, "use_attn_result", False):
            return attention.o(states)
        heads = attention.config.n_heads
        states = attention.o.hook_in(states)
        split = states.view(*states.shape[:-1], heads, -1)
        return attention._compute_per_head_result(split, heads, split.shape[-1])


class _Stacked(_Part):
    """q, k and v one after the other, from three hooked projections (GPT-2, Phi-3)."""

    def forward(self, states: Tensor) -> Tensor:
        attention: Any = self.attention
        return self.join([part(states).flatten(2) for part in (attention.q, attention.k, attention.v)])

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1)

    @torch.no_grad()
    def equals_fused(self, name: str | None) -> bool:
        """Return whether the joined projections give what the module's fused one gives."""
        attention: Any = self.attention
        fused = attention.original_component._modules.get(name)
        if fused is None:
            return False
        fused = getattr(fused, "original_component", fused)
        states = torch.randn(1, 2, attention.config.d_model, generator=torch.Generator().manual_seed(0))
        weight = attention.q.original_component.weight
        states = states.to(weight.device, weight.dtype)
        parts = [part.original_component(states).flatten(2) for part in (attention.q, attention.k, attention.v)]
        joined, whole = self.join(parts), fused(states)
        return joined.shape == whole.shape and torch.allclose(joined, whole, rtol=1e-2, atol=1e-3)


class _Interleaved(_Stacked):
    """q, k and v head by head (GPT-NeoX)."""

    def join(self, parts: list[Tensor]) -> Tensor:
        attention: Any = self.attention
        heads = attention.config.n_heads
        if any(part.shape != parts[0].shape for part in parts):
            return torch.cat(parts, -1)
        return torch.cat([part.unflatten(-1, (heads, -1)) for part in parts], -1).flatten(2)
