"""Activation and attribution patching: the toy, whole hooked passes, finite differences, and the three front doors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions import PatchHeads
from probe.interventions.base import Intervention
from probe.patching.attribution import attribution
from probe.patching.nodes import MLP, Input, Stream
from probe.patching.pairs import Pairs, PromptPair, pairs
from probe.patching.places import patch
from probe.patching.runs import activations
from tests.probe.architectures import VOCAB
from tests.probe.every_door import tiny
from tests.probe.toy_circuit import toy, toy_pairs

NAMES = ["gpt2", "llama", "gemma2", "qwen3", "gpt_neox"]


def some_pairs(rows: int = 3, tokens: int = 9, *, shared: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(2)
    clean, corrupted = torch.randint(3, VOCAB, (2, rows, tokens), generator=generator)
    corrupted[:, :shared] = clean[:, :shared]
    padding = torch.ones(rows, tokens, dtype=torch.bool)
    padding[0, :3] = False
    good, bad = torch.randint(3, VOCAB, (2, rows), generator=generator)
    return Pairs(clean, corrupted, padding, good, bad, roles={"middle": torch.tensor([4, 5, 3])})


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return tiny(request.param)


def difference(model, pairs, *interventions):
    with torch.no_grad(), model.intervene(*interventions):
        return pairs.logit_difference(model.logits(pairs.clean, padding=pairs.padding, logits_to_keep=1))


def test_the_toy_and_what_its_gradient_cannot_see():
    """0.0 turns the whole of 1.0's answer; its scores are saturated, so the clean gradient says it does nothing."""
    model, given = toy(), toy_pairs()
    found = patch(model, given, [*model.heads(), Input("q", 1, 0), Input("k", 1, 1), MLP(0), Stream(1)])
    wanted = torch.tensor([-1.5, 2.5, -1.5, 1.5, -1.5, 2.5, 2.5, -1.5])
    torch.testing.assert_close(found.patched, wanted[:, None].expand(8, 2))
    estimated = attribution(model, given)
    torch.testing.assert_close(estimated.patched, torch.tensor([2.5, 2.5, -1.5, 1.5])[:, None].expand(4, 2))
    # between the prompts only t = 1/2 is not saturated: three keys share the row and the slope is -80
    for steps, wanted in ((1, -77.5), (2, 2.5), (5, -13.5)):
        between = attribution(model, given, steps=steps).patched[0]
        torch.testing.assert_close(between, torch.full((2,), wanted), rtol=1e-4, atol=1e-4)
    through_s2 = patch(model, given, [Stream(0), Stream(1)], at="S2").patched
    torch.testing.assert_close(through_s2, torch.tensor([-2.5, 1.5])[:, None].expand(2, 2))
    ablated = difference(model, given, probe.PruneHeads([(0, 0)]))
    torch.testing.assert_close(ablated, torch.full((2,), -1 / 6))


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("at", ["END", "middle", "all"])
@torch.no_grad()
def test_heads_equal_whole_passes_with_another_z(model, at, shared):
    given = some_pairs(shared=shared)
    found = patch(model, given, model.heads(), at=at, batch=1)  # each batch without the padding it does not need
    for row in range(len(given)):
        one = given.take([row])
        source = model.head_outputs(one.corrupted)
        columns = {"END": [one.end], "all": None, "middle": one.roles["middle"].tolist()}[at]
        for place, head in enumerate(model.heads()):
            wanted = difference(model, one, PatchHeads([head], source=source, positions=columns))
            torch.testing.assert_close(found.patched[place, row], wanted[0], rtol=1e-4, atol=1e-4)
    least = 1e-5 if shared else 1e-3
    assert (found.raw.abs() > least).sum() >= (4 if at == "middle" else 8)  # the last layer's middle reaches no END


@torch.no_grad()
def test_streams_operands_and_mlps(model):
    """The whole stream gives the corrupted run; an MLP at END equals a whole pass with that write."""
    given = some_pairs()
    found = patch(model, given, [Stream(0), Stream(1), *(Input(kind, 1, 1) for kind in "qkv"), MLP(1)], at="all")
    torch.testing.assert_close(found.patched[:2], found.corrupted.expand(2, 3), rtol=1e-4, atol=1e-4)
    assert (found.patched[2:] - found.clean).abs().amax(1).min() > 1e-4
    end = patch(model, given, [Input(kind, 1, 1) for kind in "qkv"] + [MLP(1), Stream(1)])
    at_end = torch.zeros(3, 9, dtype=torch.bool)
    at_end[:, -1] = True
    again = patch(model, given, list(end.nodes), at=at_end)
    assert torch.equal(end.patched, again.patched)
    corrupted = activations(model, given, given.corrupted)
    clean = activations(model, given, given.clean)

    def write(states):
        new = states.clone().view_as(clean.mlp[1])
        new[:, -1] = corrupted.mlp[1].view_as(new)[:, -1]
        return new

    with model.stream.writing(1, write):
        torch.testing.assert_close(end.patched[3], difference(model, given), rtol=1e-4, atol=1e-4)


class Operand(Intervention):
    """Takes one operand of one head from another run, from a column on."""

    def __init__(self, place, run, start=0):
        self.place, self.run, self.start = place, run, start

    def before(self, call):
        if call.layer != self.place.layer:
            return call
        name = {"q": "query", "k": "key", "v": "value"}[self.place.kind]
        states = getattr(call, name).clone()
        states[:, self.place.head, self.start :] = getattr(self.run, name)[call.layer][:, self.place.head, self.start :]
        return replace(call, **{name: states})


@torch.no_grad()
def test_operands_equal_whole_passes_with_another_one(model):
    given = some_pairs()
    corrupted = activations(model, given, given.corrupted)
    places = [Input(kind, layer, 1) for kind in "qkv" for layer in (0, 1)]
    found = patch(model, given, places, at="all")
    for place, patched in zip(places, found.patched, strict=True):
        wanted = difference(model, given, Operand(place, corrupted))
        torch.testing.assert_close(patched, wanted, rtol=1e-4, atol=1e-4)
    at_end = patch(model, given, places)
    for place, patched in zip(places, at_end.patched, strict=True):
        wanted = difference(model, given, Operand(place, corrupted, given.end))
        torch.testing.assert_close(patched, wanted, rtol=1e-4, atol=1e-4)
        assert (patched - at_end.clean).abs().max() > 1e-4


@torch.no_grad()
def test_equal_prompts_have_no_effect_at_all(model):
    given = some_pairs()
    same = Pairs(given.clean, given.clean, given.padding, given.good, given.bad)
    places = [*model.heads(), MLP(0), Stream(1), Input("q", 1, 0), Input("k", 0, 0), Input("v", 1, 0)]
    for at in ("END", "all"):
        assert not patch(model, same, places, at=at).raw.any()
    assert not attribution(model, same, steps=2).raw.any()


@torch.no_grad()
def test_attribution_is_the_slope_of_a_partial_patch(model):
    """Towards a corrupted z a hundredth of the way, the exact effect is a hundredth of the estimate."""
    given, share = some_pairs(), 1e-2
    estimate = attribution(model, given, at="all")
    clean, corrupted = (activations(model, given, ids) for ids in (given.clean, given.corrupted))

    class Partly(Intervention):
        def __init__(self, head, share):
            self.head, self.share = head, share

        def after(self, call, output):
            output = output.clone()
            if call.layer == self.head.layer:
                change = (corrupted.z[call.layer] - clean.z[call.layer])[:, self.head.head]
                output[:, self.head.head] += self.share * change
            return output

    for place, head in enumerate(model.heads()):
        found = [difference(model, given, Partly(head, each)) for each in (share, -share)]
        slope = (found[0] - found[1]) / (2 * share)
        torch.testing.assert_close(estimate.patched[place] - estimate.clean, slope, rtol=2e-2, atol=2e-3)


def test_mistakes_are_one_line():
    model, given = tiny("llama"), some_pairs()
    with pytest.raises(UsageError, match=r"the columns must be END, all or a role among \['middle'\], got 'S2'"):
        patch(model, given, [Head(0, 0)], at="S2")
    with pytest.raises(UsageError, match="stream2 does not exist"):
        patch(model, given, [Stream(2)])
    with pytest.raises(UsageError, match="no place to patch was given"):
        patch(model, given, [])
    with pytest.raises(UsageError, match=r"columns must be \[3, 9\] of bool, got \[3, 8\]"):
        patch(model, given, [Head(0, 0)], at=torch.ones(3, 8, dtype=torch.bool))
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        attribution(model, given, steps=0)


@torch.no_grad()
def test_one_patched_logit_difference_is_the_same_through_every_door(llama):
    """z of 23.3 at END, from the prompt in which Mary gives: -1.840, of 5.051 clean and -5.540 corrupted."""
    text = "Then, Mary and John went to the store. {} gave a drink to"
    given = pairs(llama, [PromptPair(text.format("John"), text.format("Mary"), " Mary", " John")])
    head = Head(23, 3)
    ours = patch(llama, given, [head])
    assert ours.clean.item() == pytest.approx(5.051, abs=1e-3)
    assert ours.corrupted.item() == pytest.approx(-5.540, abs=1e-3)
    assert ours.patched.item() == pytest.approx(-1.840, abs=1e-3)
    z = llama.head_outputs(given.corrupted).z[head.layer][:, head.head, -1]

    def edit(states, hook):
        states[:, -1, head.head] = z
        return states

    lens = llama.lens.run_with_hooks(given.clean, fwd_hooks=[(f"blocks.{head.layer}.attn.hook_z", edit)])
    assert given.logit_difference(lens).item() == pytest.approx(ours.patched.item(), abs=1e-4)
    columns = slice(head.head * llama.head_dim, (head.head + 1) * llama.head_dim)
    with llama.nnsight.trace(given.clean):
        llama.nnsight.model.layers[head.layer].self_attn.o_proj.input[:, -1, columns] = z
        logits = llama.nnsight.output.logits.save()
    assert given.logit_difference(logits).item() == pytest.approx(ours.patched.item(), abs=1e-4)
