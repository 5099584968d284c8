"""A two-layer model whose circuit is known because its weights are set by hand: every effect is a small fraction.

The prompt is IO S S2 END, "Mary John John gave": tokens A, B, B, END, or with the names exchanged. The stream holds the
token (3 dimensions), the position (16), which name is inhibited (2) and the answer (2); there is no norm, and the MLPs
write nothing.

    0.0  from END reads S2 and writes which name it found to the inhibited ones
    0.1  writes nothing
    1.0  from END reads the names that are not inhibited and writes the answer, with gain 2
    1.1  from END reads S2 and writes it to the answer with gain -0.5

Scores are 0 or 60, so a row is flat over the keys that share the highest score. Clean: the logit difference is 2 + 0.5;
with S2 exchanged, as in the corrupted prompt, -2.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import probe
from probe.patching.pairs import Pairs
from tests.probe.every_door import tiny_tokenizer

PAD, A, B, END = range(4)
S2 = 2
"""The position of the repeated name."""
POSITIONS, GAIN = 16, 60.0
TOKEN, PLACE, INHIBITED, ANSWER = slice(0, 3), slice(3, 19), slice(19, 21), slice(21, 23)
HIDDEN, HEAD_DIM = 23, 4
CLEAN_LD, CORRUPTED_LD = 2.5, -2.5


class ToyConfig(PreTrainedConfig):
    model_type = "toy_circuit"

    def __init__(self, **options: Any) -> None:
        self.vocab_size = 4
        self.hidden_size = HIDDEN
        self.num_hidden_layers = self.num_attention_heads = self.num_key_value_heads = 2
        self.head_dim = HEAD_DIM
        self.max_position_embeddings = POSITIONS
        super().__init__(**({"pad_token_id": PAD, "tie_word_embeddings": False} | options))


class ToyAttention(nn.Module):
    is_causal = True

    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(HIDDEN, 2 * HEAD_DIM, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(2 * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, states: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
        shape = (*states.shape[:-1], 2, HEAD_DIM)
        query, key, value = (
            projection(states).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)
        z, _ = attend(self, query, key, value, attention_mask, scaling=1.0)
        return self.o_proj(z.flatten(2))


class ToyLayer(nn.Module):
    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = ToyAttention(config, layer_idx)
        self.mlp = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Cache | None = None
    ) -> Tensor:
        states = hidden_states + self.attention(hidden_states, attention_mask, past_key_values)
        return states + self.mlp(states)


class ToyPreTrained(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """The weights are set by hand."""


class ToyBody(ToyPreTrained):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.tokens, self.places = nn.Embedding(4, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        self.layers = nn.ModuleList(ToyLayer(config, index) for index in range(2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        tokens = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=tokens,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        states = tokens + self.places(position_ids)
        for layer in self.layers:
            states = layer(states, attention_mask=mask, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=past_key_values)


class ToyForCausalLM(ToyPreTrained):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyBody(config)
        self.lm_head = nn.Linear(HIDDEN, 4, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        output = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


@torch.no_grad()
def toy() -> probe.Model:
    """The model, checked at its seam like any other."""
    hf: Any = ToyForCausalLM(ToyConfig())
    for parameter in hf.parameters():
        parameter.zero_()
    for place, token in enumerate((A, B, END)):
        hf.model.tokens.weight[token, place] = 1
    hf.model.places.weight[:, PLACE] = torch.eye(POSITIONS)
    names, end = slice(0, 2), 2
    first, second = (layer.attention for layer in hf.model.layers)
    one, two = slice(0, HEAD_DIM), slice(HEAD_DIM, 2 * HEAD_DIM)  # the columns of the two heads
    pair = torch.eye(2)
    for attention, columns in ((first, one), (second, two)):  # 0.0 and 1.1 read S2 by its position
        attention.q_proj.weight[columns][0, end] = GAIN
        attention.k_proj.weight[columns][0, PLACE.start + S2] = 1
        attention.v_proj.weight[columns][:2, names] = pair
    first.o_proj.weight[INHIBITED, :2] = pair
    second.o_proj.weight[ANSWER, HEAD_DIM : HEAD_DIM + 2] = -0.5 * pair
    second.q_proj.weight[one][:2, end] = GAIN
    second.q_proj.weight[one][:2, INHIBITED] = -GAIN * pair
    second.k_proj.weight[one][:2, names] = pair
    second.v_proj.weight[one][:2, names] = pair
    second.o_proj.weight[ANSWER, :2] = 2 * pair
    hf.lm_head.weight[A, ANSWER.start] = hf.lm_head.weight[B, ANSWER.stop - 1] = 1
    return probe.Model(hf, tiny_tokenizer())


def toy_pairs() -> Pairs:
    """Both prompts, A B B END and B A A END, each with S2 exchanged as the corrupted one; the answer is the IO."""
    return Pairs(
        clean=torch.tensor([[A, B, B, END], [B, A, A, END]]),
        corrupted=torch.tensor([[A, B, A, END], [B, A, B, END]]),
        padding=None,
        good=torch.tensor([A, B]),
        bad=torch.tensor([B, A]),
        roles={"S2": torch.tensor([S2, S2])},
    )
