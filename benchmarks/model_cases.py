"""The model cases: one forward pass over a prompt, plain, with our statistics, and with the maps as others give them.

All have the same weights and prompt, keep the last position's logits only, and build no key-value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probe.benchmarks.kernel_cases import WINDOW, Work
from probe.benchmarks.plan import Case, Settings
from probe.loading.sources import resolve
from probe.loading.weights import load_weights

STATISTICS = ("lse", "entropy", "distance", "windowed_distance", "top", "received")
SHORT = 8
CALIBRATED = 30


def work(case: Case, settings: Settings, length: int) -> Work:
    """Load the model of a model case and return its work."""
    if case.method in ("stats", "act"):
        return ours(settings, length, method=case.method, implementation=case.implementation)
    hf, tokenizer = load_weights(
        resolve(settings.model, revision=settings.revision),
        dtype=settings.dtype,
        device=settings.device,
        revision=settings.revision,
    )
    hf.eval()
    ids = prompt(settings, length, hf.config.get_text_config().vocab_size)
    hf(ids[:, :SHORT], use_cache=False)  # weights are mapped from their file and become resident when they are used
    if case.method == "plain":
        hf.set_attn_implementation("sdpa")
        return Work(call=lambda: hf(ids, use_cache=False, logits_to_keep=1).logits, holds=tokenizer)
    if case.method == "bridge":
        return bridge(hf, tokenizer, ids, settings)
    hf.set_attn_implementation("eager")  # the only one that has a map to give
    if case.method == "eager":
        return Work(
            call=lambda: hf(ids, use_cache=False, logits_to_keep=1, output_attentions=True).attentions,
            check=partial(check_maps, hf=hf, length=length),
            holds=tokenizer,
        )
    if case.method == "nnsight":
        return nnsight(hf, tokenizer, ids)
    raise ValueError(f"expected a method of a model case, got {case.method!r}")


def prompt(settings: Settings, length: int, vocab: int) -> Tensor:
    """Return random token ids [1, length]."""
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randint(vocab, (1, length), generator=generator).to(settings.device)


def ours(settings: Settings, length: int, *, method: str, implementation: str) -> Work:
    """Return the work of our cases: every statistic but key sets and pooled maps, of all heads; or ACT."""
    import probe
    from probe.interventions import CalibrateSinks
    from probe.saving.manifest import attention

    model = probe.load(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        implementation=implementation,
    )
    ids = prompt(settings, length, model.vocab)
    model.hf(ids[:, :SHORT], use_cache=False)

    def statistics() -> object:
        return model.run_with_stats(ids, stats=STATISTICS, window=WINDOW, logits_to_keep=1)

    heads = model.heads()
    calibrated = CalibrateSinks(heads[:: max(1, len(heads) // CALIBRATED)][:CALIBRATED])

    def act() -> object:
        with model.intervene(calibrated):
            return model.logits(ids, logits_to_keep=1)

    facts = {"attention": attention(model), "heads": model.n_layers * model.n_heads}
    return Work(call=act if method == "act" else statistics, facts=facts)


def bridge(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, settings: Settings) -> Work:
    """Return the work of TransformerLens: a cache of every layer's `hook_pattern`."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        hf.config.name_or_path, hf_model=hf, tokenizer=tokenizer, device=settings.device, dtype=hf.dtype
    )

    def call() -> list[Tensor]:
        _, cache = model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"), logits_to_keep=1)
        return list(cache.values())

    return Work(call=call, check=partial(check_maps, hf=hf, length=ids.shape[1]))


def nnsight(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> Work:
    """Return the work of nnsight: the second output of each attention module, saved inside a trace."""
    from nnsight import TransformersModel

    model = TransformersModel(hf, tokenizer=tokenizer, task="text-generation")

    def call() -> list[Tensor]:
        patterns: list[Tensor] = []
        with model.trace(ids, use_cache=False, logits_to_keep=1):
            for layer in model.model.layers:
                patterns.append(layer.self_attn.output[1].save())
        return patterns

    return Work(call=call, check=partial(check_maps, hf=hf, length=ids.shape[1]))


def check_maps(maps: Sequence[Tensor], *, hf: PreTrainedModel, length: int) -> None:
    """Raises ValueError unless these are the attention maps of every layer; the first and the last are looked into."""
    config = hf.config.get_text_config()
    shape = (1, config.num_attention_heads, length, length)
    found = [tuple(each.shape) for each in maps]
    if found != [shape] * config.num_hidden_layers:
        raise ValueError(f"expected {config.num_hidden_layers} maps of {shape}, got {len(found)}: {found[:1]}")
    for each in (maps[0], maps[-1]):
        if not torch.allclose(each[..., -1, :].float().sum(-1), torch.ones((), device=each.device), atol=1e-2):
            raise ValueError("expected maps whose rows sum to one")
