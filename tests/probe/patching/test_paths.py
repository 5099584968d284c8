"""Path patching in one pass a layer, against its definition: three whole forward passes with everything hooked."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
import transformers

import probe
from probe.errors import UsageError
from probe.heads import Head
from probe.interventions.base import Intervention
from probe.patching.nodes import MLP, Input, keys, queries, values
from probe.patching.pairs import Pairs
from probe.patching.paths import to_inputs, to_logits
from probe.patching.runs import activations, first_difference
from tests.probe.architectures import SMALL, VOCAB
from tests.probe.every_door import tiny, tiny_tokenizer
from tests.probe.toy_circuit import toy, toy_pairs

NAMES = ["gpt2", "llama", "gemma2", "qwen3", "gpt_neox"]
SENDERS = [Head(0, 0), Head(0, 3), MLP(0), Head(1, 2), MLP(1)]


def some_pairs(rows: int = 3, tokens: int = 9, *, padded: bool = True, shared: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(3, VOCAB, (rows, tokens), generator=generator)
    corrupted = torch.randint(3, VOCAB, (rows, tokens), generator=generator)
    corrupted[:, :shared] = clean[:, :shared]
    padding = torch.ones(rows, tokens, dtype=torch.bool)
    padding[0, :3] = False
    good, bad = torch.randint(3, VOCAB, (2, rows), generator=generator)
    return Pairs(clean, corrupted, padding if padded else None, good, bad)


class Given(Intervention):
    """Replaces z of every layer by what is given, and takes the operands that are given."""

    def __init__(self, z=None, operands=None):
        self.z, self.operands, self.seen = z or {}, operands or {}, {}

    def before(self, call):
        self.seen[call.layer] = call
        for (kind, layer, head), value in self.operands.items():
            if layer == call.layer:
                name = {"q": "query", "k": "key", "v": "value"}[kind]
                states = getattr(call, name).clone()
                states[:, head] = value
                call = type(call)(
                    **{field: states if field == name else getattr(call, field) for field in call.__dataclass_fields__}
                )
        return call

    def after(self, call, output):
        return self.z.get(call.layer, output)


def whole(model, pairs, given, mlps):
    """A whole forward pass with z, operands and MLP writes given; the logit difference."""
    with ExitStack() as stack:
        for layer, write in mlps.items():
            stack.enter_context(model.stream.writing(layer, lambda states, write=write: write.view_as(states)))
        with model.intervene(given):
            return pairs.logit_difference(model.logits(pairs.clean, padding=pairs.padding, logits_to_keep=1))


def by_definition(model, pairs, sender, receivers, freeze_mlps, columns=slice(None)):
    clean, corrupted = (activations(model, pairs, ids) for ids in (pairs.clean, pairs.corrupted))
    z = {layer: clean.z[layer].clone() for layer in range(model.n_layers)}
    mlps = {layer: clean.mlp[layer].clone() for layer in range(model.n_layers)} if freeze_mlps else {}
    if isinstance(sender, MLP):
        mlps[sender.layer] = clean.mlp[sender.layer].clone()
        mlps[sender.layer][:, columns] = corrupted.mlp[sender.layer][:, columns]
    else:
        z[sender.layer][:, sender.head, columns] = corrupted.z[sender.layer][:, sender.head, columns]
    given = Given(z)
    found = whole(model, pairs, given, mlps)
    if receivers is None:
        return found
    names = {"q": "query", "k": "key", "v": "value"}
    recorded = {tuple(each): getattr(given.seen[each.layer], names[each.kind])[:, each.head] for each in receivers}
    return whole(model, pairs, Given(operands=recorded), {})


def test_the_effects_of_a_circuit_that_is_known():
    """Spec of the toy: 1.0 carries 80 % of the answer, 1.1 20 %, and 0.0 acts through the queries of 1.0 alone."""
    model, pairs = toy(), toy_pairs()
    found = to_logits(model, pairs)
    wanted = torch.tensor([2.5, 2.5, -1.5, 1.5])[:, None].expand(4, 2)
    torch.testing.assert_close(found.patched, wanted)
    torch.testing.assert_close(found.clean, torch.full((2,), 2.5))
    torch.testing.assert_close(found.corrupted, torch.full((2,), -2.5))
    torch.testing.assert_close(found.normalised, torch.tensor([0.0, 0, 80, 20]).double(), rtol=1e-5, atol=1e-5)
    inhibition = [Head(0, 0)]
    through = {each: to_inputs(model, pairs, [each], senders=inhibition).patched for each in every_input()}
    for each, patched in through.items():
        torch.testing.assert_close(patched, torch.full((1, 2), -1.5 if each == Input("q", 1, 0) else 2.5))


def every_input() -> list[Input]:
    return [Input(kind, 1, head) for kind in "qkv" for head in (0, 1)]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return tiny(request.param)


@pytest.mark.parametrize("freeze_mlps", [False, True])
@torch.no_grad()
def test_the_direct_path_to_the_logits(model, freeze_mlps):
    pairs = some_pairs()
    found = to_logits(model, pairs, senders=SENDERS, freeze_mlps=freeze_mlps, batch=2)
    for place, sender in enumerate(SENDERS):
        wanted = by_definition(model, pairs, sender, None, freeze_mlps)
        torch.testing.assert_close(found.patched[place], wanted, rtol=1e-4, atol=1e-4)
        assert (found.patched[place] - found.clean).abs().max() > 1e-3


@pytest.mark.parametrize(("freeze_mlps", "end"), [(False, True), (True, False), (False, False)])
@torch.no_grad()
def test_paths_through_queries_keys_and_values(model, freeze_mlps, end):
    pairs = some_pairs()
    heads = [Head(1, 0), Head(1, 3)]
    into = [queries(heads), keys(model, heads), values(model, heads), (Input("q", 1, 2), Input("v", 1, 0))]
    for receivers in into:
        found = to_inputs(model, pairs, receivers, senders=SENDERS, freeze_mlps=freeze_mlps, end=end)
        columns = slice(pairs.end, None) if end else slice(None)
        for place, sender in enumerate(SENDERS):
            wanted = found.clean
            if sender.layer == 0:
                wanted = by_definition(model, pairs, sender, receivers, freeze_mlps, columns)
                assert (wanted - found.clean).abs().max() > 1e-6
            torch.testing.assert_close(found.patched[place], wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_columns_before_the_prompts_differ_are_not_run(model, padded):
    pairs = some_pairs(shared=5, padded=padded)
    assert first_difference(pairs) == 5
    widths = set()
    handle = model.hf.get_output_embeddings().register_forward_pre_hook(lambda _, args: widths.add(args[0].shape[1]))
    layer = model.stream.layers[1].register_forward_pre_hook(
        lambda _, args, options: widths.add((args[0] if args else options["hidden_states"]).shape[1]), with_kwargs=True
    )
    heads = [Head(1, 0), Head(1, 3)]
    try:
        for receivers in (queries(heads), keys(model, heads), values(model, heads)):
            found = to_inputs(model, pairs, receivers, senders=SENDERS[:3])
            for place, sender in enumerate(SENDERS[:3]):
                wanted = by_definition(model, pairs, sender, receivers, freeze_mlps=False)
                torch.testing.assert_close(found.patched[place], wanted, rtol=1e-4, atol=2e-5)
                assert (wanted - found.clean).abs().max() > 1e-6
    finally:
        handle.remove()
        layer.remove()
    assert 4 in widths


@torch.no_grad()
def test_receivers_in_several_layers_are_patched_together():
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SMALL | {"num_hidden_layers": 4})))
    model, pairs = probe.Model(hf.eval(), tiny_tokenizer()), some_pairs()
    receivers = (Input("q", 1, 3), Input("k", 2, 0), Input("v", 3, 1), Input("q", 3, 0))
    senders = [Head(0, 1), Head(1, 2), MLP(1), Head(2, 3)]
    found = to_inputs(model, pairs, receivers, senders=senders)
    for place, sender in enumerate(senders):
        reached = [each for each in receivers if each.layer > sender.layer]
        wanted = by_definition(model, pairs, sender, reached, freeze_mlps=False)
        torch.testing.assert_close(found.patched[place], wanted, rtol=1e-4, atol=2e-5)
        first = by_definition(model, pairs, sender, reached[:1], freeze_mlps=False)
        assert len(reached) == 1 or (wanted - first).abs().max() > 1e-5


@torch.no_grad()
def test_equal_prompts_and_a_head_that_writes_nothing_have_no_effect_at_all():
    model, pairs = tiny("llama"), some_pairs()
    same = Pairs(pairs.clean, pairs.clean, pairs.padding, pairs.good, pairs.bad)
    assert torch.equal(to_logits(model, same).raw, torch.zeros(8).double())
    receivers = queries([Head(1, 1)])
    assert torch.equal(to_inputs(model, same, receivers).raw, torch.zeros(8).double())
    model.hf.model.layers[0].self_attn.o_proj.weight[:, 12:24] = 0
    found = to_logits(model, pairs)
    assert found.raw[1] == 0 and (found.raw.abs() > 1e-5).sum() == 7
    assert to_inputs(model, pairs, receivers).raw[1] == 0


@torch.no_grad()
def test_padding_and_batches_change_nothing():
    model, pairs = tiny("gemma2"), some_pairs()
    together = to_logits(model, pairs)
    for row in range(3):
        alone = to_logits(model, pairs.take([row]))
        torch.testing.assert_close(together.patched[:, row], alone.patched[:, 0], rtol=1e-4, atol=1e-5)
    seen = []
    to_logits(model, pairs, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16) and seen == sorted(seen)


def test_what_does_not_exist_is_refused():
    model, pairs = tiny("llama"), some_pairs()
    with pytest.raises(
        UsageError, match=r"L1H4 does not exist in .*: it has layers 0\.\.1, heads 0\.\.3 and KV heads 0\.\.1"
    ):
        to_logits(model, pairs, senders=[(1, 4)])
    with pytest.raises(UsageError, match="L1K2 does not exist"):
        to_inputs(model, pairs, [Input("k", 1, 2)])
    with pytest.raises(UsageError, match="no receiver was given"):
        to_inputs(model, pairs, [])
    with pytest.raises(UsageError, match="the kind of an input must be 'q', 'k' or 'v', got 'o'"):
        to_inputs(model, pairs, [Input("o", 1, 2)])
