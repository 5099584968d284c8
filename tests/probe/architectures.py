"""Tiny random models of every supported architecture, by name, from their configurations alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf

VOCAB = 96
WINDOW = 8

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EVERY_OTHER = ["sliding_attention", "full_attention"]


def _llava() -> hf.PreTrainedModel:
    text = hf.LlamaConfig(**SMALL)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=VOCAB - 1)
    )


def _of(model: type[hf.PreTrainedModel], config: type[hf.PreTrainedConfig], **options: object) -> Callable:
    return lambda: model(config(**(SMALL | options)))


BUILDERS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2)
    ),
    "gpt_neox": _of(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, num_key_value_heads=4),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCAB, hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=48, pad_token_id=0,
        )
    ),
    "llama": _of(hf.LlamaForCausalLM, hf.LlamaConfig),
    "mistral": _of(hf.MistralForCausalLM, hf.MistralConfig, sliding_window=WINDOW),
    "mixtral": _of(hf.MixtralForCausalLM, hf.MixtralConfig, num_local_experts=4),
    "qwen2": _of(hf.Qwen2ForCausalLM, hf.Qwen2Config),
    "qwen3": _of(hf.Qwen3ForCausalLM, hf.Qwen3Config, head_dim=16),
    "gemma2": _of(
        hf.Gemma2ForCausalLM, hf.Gemma2Config, head_dim=16, sliding_window=WINDOW, layer_types=EVERY_OTHER,
        attn_logit_softcapping=2.0, query_pre_attn_scalar=16,
    ),
    "gemma3": _of(
        hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, head_dim=16, sliding_window=WINDOW, layer_types=EVERY_OTHER,
    ),
    "phi": _of(hf.PhiForCausalLM, hf.PhiConfig),
    "phi3": _of(hf.Phi3ForCausalLM, hf.Phi3Config),
    "olmo2": _of(hf.Olmo2ForCausalLM, hf.Olmo2Config),
    "cohere": _of(hf.CohereForCausalLM, hf.CohereConfig),
    "starcoder2": _of(hf.Starcoder2ForCausalLM, hf.Starcoder2Config, sliding_window=WINDOW),
    "gpt_oss": _of(
        hf.GptOssForCausalLM, hf.GptOssConfig, head_dim=16, sliding_window=WINDOW, layer_types=EVERY_OTHER,
        num_local_experts=4, num_experts_per_tok=2,
    ),
    "smollm3": _of(hf.SmolLM3ForCausalLM, hf.SmolLM3Config, no_rope_layers=[1, 0]),
    "llava": _llava,
}  # fmt: skip

BYPASSES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=4)),
    "gptj": lambda: hf.GPTJForCausalLM(
        hf.GPTJConfig(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, rotary_dim=8, n_positions=128)
    ),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2)),
}


def build(name: str) -> hf.PreTrainedModel:
    """The model with weights large enough that its attention rows are far from uniform; float32, eval mode."""
    torch.manual_seed(0)
    model = (BUILDERS | BYPASSES)[name]().float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
            elif parameter_name.endswith("sinks"):
                parameter.normal_()
    return model
