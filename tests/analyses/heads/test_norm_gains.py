"""OV circuits and norm gains against what real modules do, on tiny random models of many architectures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probe import Head, PruneHeads, Request
from probe.analyses.heads.norm_gains import Gain, Norms, find_norms, measure_gain
from probe.engine.projections import Projections, visit_projections
from probe.interventions import AttentionCall, Intervention
from probe.models import Model
from tests.probe.architectures import BUILDERS, build

ARCHITECTURES = sorted(BUILDERS)


def model_of(name: str) -> Model:
    """A tiny model with biases, and norms with gains, that are not what they are initialised to; it makes no tokens."""
    hf = build(name)
    torch.manual_seed(1)
    for parameter in hf.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5)
    for module in hf.modules():
        if "norm" in type(module).__name__.lower():
            nn.init.normal_(module.weight, mean=1.0, std=0.5)  # type: ignore[arg-type]
    return Model(hf, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest) -> Model:
    return model_of(request.param)


def projections(model: Model) -> list[Projections]:
    found: list[Projections] = []
    visit_projections(model.hf, model.seam, model.stream, found.append)
    return found


def circuit(maps: Projections, head: int) -> Tensor:
    """The OV circuit [hidden, hidden]: x @ circuit is what `head` writes when it attends to the input x alone."""
    return maps.value[head // (maps.output.shape[0] // maps.value.shape[0])] @ maps.output[head]


def attended(model: Model, layer: int, kept: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output [hidden] of a layer's attention module on one token with head `kept` alone, and its weights."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple, kwargs: dict, result: tuple) -> None:
        seen.append(((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])[0, 0], result[0][0, 0]))

    handle = model.seam.modules[layer].register_forward_hook(note, with_kwargs=True)
    others = [head for head in range(model.n_heads) if head != kept]
    prune = PruneHeads([Head(layer, head) for head in others])
    try:
        with torch.no_grad(), model.intervene(prune), model.recording(Request(), sets={"all": [0]}) as recording:
            model.hf(input_ids=torch.tensor([[7]]), use_cache=False)
    finally:
        handle.remove()
    mass = recording.stats().mass
    assert mass is not None
    return *seen[0], mass[layer, 0, :, 0, 0]


def test_a_head_writes_its_circuit_times_its_input(tiny: Model):
    """On one token a row of attention is that token's weight alone: 1, or less where a learned sink takes some."""
    for maps in projections(tiny):
        _, bias, _ = attended(tiny, maps.layer, None)
        for head in range(tiny.n_heads):
            read, written, weight = attended(tiny, maps.layer, head)
            expected = weight[head] * (read @ circuit(maps, head) + value_bias(tiny, maps, head) @ maps.output[head])
            torch.testing.assert_close(written - bias, expected, rtol=1e-4, atol=1e-4)


class Values(Intervention):
    """Notes the values of each layer; changes nothing."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def before(self, call: AttentionCall) -> AttentionCall:
        self.seen[call.layer] = call.value[0, :, 0]
        return call


def value_bias(model: Model, maps: Projections, head: int) -> Tensor:
    """The part of a head's value that does not depend on the input, from the values of one real token."""
    values = Values()
    with model.intervene(values):
        read, _, _ = attended(model, maps.layer, None)
    group = head // (model.n_heads // model.n_kv_heads)
    return values.seen[maps.layer][group] - read @ maps.value[group]


def test_reading_the_circuits_leaves_the_model_as_it_was(tiny: Model):
    ids = torch.tensor([[3, 5, 8, 13]])
    with torch.no_grad():
        before = tiny.hf(input_ids=ids, use_cache=False).logits
        projections(tiny)
        find_norms(tiny)
        after = tiny.hf(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, after)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.hf.modules())


SANDWICH = {"gemma2": (True, True), "gemma3": (True, True), "olmo2": (False, True)}


def test_the_norms_around_the_circuits_are_found(tiny: Model, request: pytest.FixtureRequest):
    name = request.node.callspec.params["tiny"]
    before, after = SANDWICH.get(name, (True, False))
    norms = find_norms(tiny)
    assert [gain is not None for gain in norms.before] == [before] * 2
    assert [gain is not None for gain in norms.after] == [after] * 2
    assert norms.final is not None


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("size", [8, 9])
def test_a_gain_is_what_the_norm_does_to_a_vector(centred: bool, size: int):
    torch.manual_seed(0)
    norm = nn.LayerNorm(size) if centred else nn.RMSNorm(size, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    gain = measure_gain(norm, size=size)
    assert gain.centred == centred
    torch.testing.assert_close(gain.gain, norm.weight.detach(), rtol=1e-4, atol=1e-4)
    x, following = torch.randn(size), torch.randn(size, 3)
    shift = norm.bias.detach() if isinstance(norm, nn.LayerNorm) else torch.zeros(size)
    spread = x.std(correction=0) if centred else x.pow(2).mean().sqrt()
    expected = (norm(x).detach() - shift) * spread @ following
    torch.testing.assert_close(x @ gain.fold(following), expected, rtol=1e-4, atol=1e-4)


def test_the_description_says_what_is_missing():
    gain = Gain(torch.ones(2), centred=False)
    assert Norms((None, None), (None, None), None).describe() == "no norm gains found to fold in"
    assert Norms((gain, gain), (None, None), gain).describe() == "gains of the input norms and the final norm folded in"
    assert Norms((gain, None), (gain, gain), None).describe() == (
        "gains of the input norms of 1 of 2 layers and the norms after the output projection folded in"
    )
