"""Every statistic at every query against the attention map of transformers' own eager attention."""

import torch

from probe.analyses.stats.settings import Settings
from probe.analyses.stats.statistics import chosen, measured
from tests.analyses.stats.models import chatty
from tests.probe.architectures import build
from tests.probe.every_door import tiny

TEXTS = ("w5 w9 w7 w7 w20 w5 w31 w90 w11", "w8 w9 w10")
EVERY = Settings(
    stat=("entropy", "distance", "windowed-distance", "top", "mass", "lse"), window=3, positions={"odd": "1,3-4,90"}
)


def eager_maps(ids):
    """Return the attention maps [layers, heads, queries, keys] of the same weights without the engine."""
    hf = build("llama")
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.cat(hf(ids[None], output_attentions=True).attentions).double()


def test_statistics_are_those_of_the_eager_map():
    model = tiny("llama")
    for text in TEXTS:
        tokens = model.tokens(text)
        p = eager_maps(tokens.ids)
        n = p.shape[-1]
        back = (torch.arange(n)[:, None] - torch.arange(n)).double()
        wanted = {
            "entropy": -torch.xlogy(p, p).sum(-1),
            "distance": (p * back).sum(-1),
            "windowed-distance": (p * back.clamp(max=3)).sum(-1),
            "top": p.amax(-1),
            "mass first": p[..., 0],
            "mass odd": p[..., [at for at in (1, 3, 4) if at < n]].sum(-1),  # what lies behind the end holds no mass
        }
        found = dict(zip([each.name for each in chosen(EVERY)], measured(model, tokens, EVERY), strict=True))
        for name, values in wanted.items():
            torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=1e-5)
        assert set(found) == {*wanted, "lse"}


def test_lse_is_the_denominator_of_the_softmax():
    model = tiny("llama")
    tokens = model.tokens(TEXTS[0])
    capture = model.capture(tokens)
    found = measured(model, tokens, Settings(stat=("lse",)))[0]
    for layer in range(model.n_layers):
        held = capture[layer]
        key = held.key.repeat_interleave(held.query.shape[0] // held.key.shape[0], 0)
        scores = (held.query @ key.mT * held.scale).double()
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        wanted = scores.masked_fill(future, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(found[layer].double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_statistic_that_is_asked_for_twice_is_measured_once():
    assert [each.name for each in chosen(Settings(stat=("top", "entropy", "top")))] == ["top", "entropy"]
    assert measured(chatty(), chatty().tokens("w5 w6"), Settings(stat=("top", "top"))).shape == (1, 2, 4, 2)
