"""END's row over the roles of the prompts, against a dense map."""

from __future__ import annotations

import torch

from probe.analyses.circuits.end_attention import FIRST, OTHER, end_attention
from probe.patching.pairs import PromptPair, pairs
from tests.probe.every_door import tiny

ROWS = ["w5 w6 w7 w8 w9", "w11 w12 w6 w7 w9 w8 w13"]


def prompts() -> list[PromptPair]:
    def span(text: str, word: str) -> tuple[int, int]:
        return text.index(word), text.index(word) + len(word)

    return [
        PromptPair(text, text, " w20", " w21", roles={"six": span(text, "w6"), "seven": span(text, "w7")})
        for text in ROWS
    ]


@torch.no_grad()
def test_masses_of_a_padded_batch_are_those_of_each_prompts_map():
    model = tiny("llama")
    model.tokenizer.pad_token = "</s>"
    found = end_attention(model, pairs(model, prompts()))
    assert found.roles == ("six", "seven", FIRST, OTHER)
    wanted = torch.zeros(2, 4, 4)
    model.hf.set_attn_implementation("eager")
    for text in ROWS:
        ids = model.tokens(text).ids
        maps = torch.stack(model.hf(ids[None], output_attentions=True).attentions)[:, 0, :, -1]
        places = [text.split().index("w6"), text.split().index("w7"), 0]
        named = torch.stack([maps[..., place] for place in places], -1)
        wanted += torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1) / len(ROWS)
    torch.testing.assert_close(found.mass, wanted, rtol=1e-4, atol=1e-5)
    head = (1, 2)
    assert found.of(head)["seven"] == float(found.mass[1, 2, 1])
    assert len(found.to_df()) == 8 and found.to_df().loc[6, "seven"] == found.of(head)["seven"]
