"""Every intervention equals an implementation that edits the whole map, in a prompt and in cached steps after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from probe.engine.attention import engaged
from probe.engine.recording import Recording
from probe.interventions import (
    CalibrateSinks,
    ForceAttention,
    HeadOutputs,
    PatchHeads,
    PruneHeads,
    Redistribute,
    ScaleHeads,
)
from probe.kernels.contract import Band, Request
from tests.probe.architectures import VOCAB, build
from tests.probe.dense import dense

LENGTH, STEPS = 40, 4
HEADS = [(0, 1), (1, 0), (1, 3)]
generator = torch.Generator().manual_seed(7)
Z = HeadOutputs({layer: torch.randn(1, 4, LENGTH, 12, generator=generator) for layer in (0, 1)})
Z16 = HeadOutputs({layer: torch.randn(1, 4, LENGTH, 16, generator=generator) for layer in (0, 1)})
GATES = torch.tensor([0.5, -1.0, 3.0])


@pytest.fixture(scope="module")
def models():
    """Grouped queries; grouped queries and windows; those and soft-capping; learned sinks."""
    return {name: build(name) for name in ("llama", "mistral", "gemma2", "gpt_oss")}


def in_layer(layer: int) -> list[int]:
    return [head for own, head in HEADS if own == layer]


def move(p: Tensor, sources: Tensor, recipients: Tensor, kept: float) -> Tensor:
    """The formula of section 4 of the paper's recipe, on a map; sources and recipients [.., keys] bool."""
    from_sources = (p * sources).sum(-1, keepdim=True)
    to_recipients = (p * recipients).sum(-1, keepdim=True)
    gain = torch.where(to_recipients > 0, 1 + (1 - kept) * from_sources / to_recipients, 1)
    moved = torch.where(sources, kept * p, torch.where(recipients, gain * p, p))
    return torch.where(to_recipients > 0, moved, p)


class Case:
    """An intervention, and what it does to a map and to z."""

    intervention: Any


class Pattern(Case):
    """An edit of the map alone."""

    def output(self, z, layer, first):
        return z


class Redistributed(Pattern):
    intervention = Redistribute(HEADS, sources=[0, 3, 4], recipients=[1, 2, 20], kept=0.3, queries=range(5, 42))

    def map(self, p, layer, first):
        p, keys = p.clone(), torch.arange(p.shape[-1])
        sources, recipients = torch.isin(keys, torch.tensor([0, 3, 4])), torch.isin(keys, torch.tensor([1, 2, 20]))
        rows = [row for row in range(p.shape[2]) if 5 <= first + row < 42]
        for head in in_layer(layer):
            p[:, head, rows] = move(p[:, head, rows], sources, recipients, 0.3)
        return p


class Calibrated(Pattern):
    """Column means above 2 / N, the first token spared, everything else takes."""

    intervention = CalibrateSinks(HEADS, beta=0.25, threshold=2.0)

    def __init__(self):
        self.sinks = {}

    def map(self, p, layer, first):
        p = p.clone()
        for head in in_layer(layer):
            if first == 0:
                means = p[0, head].sum(0) / torch.arange(LENGTH, 0, -1)
                self.sinks[layer, head] = {j for j in range(1, LENGTH) if means[j] > 2.0 / LENGTH}
                assert self.sinks[layer, head]
            sources = torch.tensor([j in self.sinks[layer, head] for j in range(p.shape[-1])])
            p[:, head] = move(p[:, head], sources, ~sources, 0.25)
        return p


class Forced(Pattern):
    intervention = ForceAttention(HEADS, queries=[17, 39, 41], keys=[12, 16], weights=[0.75, 0.25])
    queries = (17, 39, 41)

    def map(self, p, layer, first):
        p = p.clone()
        for row in range(p.shape[2]):
            if first + row in self.queries:
                p[:, in_layer(layer), row] = 0
                p[:, in_layer(layer), row, 12], p[:, in_layer(layer), row, 16] = 0.75, 0.25
        return p


class Outputs(Case):
    """An edit of z: `edit(z [batch, queries, dim], layer, head, positions)`."""

    z: Any = Z

    def edit(self, z, layer, head, positions):
        raise NotImplementedError

    def map(self, p, layer, first):
        return p

    def output(self, z, layer, first):
        z = z.clone()
        for head in in_layer(layer):
            z[:, head] = self.edit(z[:, head], layer, head, range(first, first + z.shape[2]))
        return z


class Zeroed(Outputs):
    intervention = PruneHeads(HEADS)

    def edit(self, z, layer, head, positions):
        return 0 * z


class Averaged(Outputs):
    intervention = PruneHeads(HEADS, fill="mean", reference=Z)

    def edit(self, z, layer, head, positions):
        return self.z.z[layer][0, head].double().mean(0).expand_as(z)


class Scaled(Outputs):
    intervention = ScaleHeads(HEADS, GATES)

    def edit(self, z, layer, head, positions):
        return z * GATES[HEADS.index((layer, head))]


class Patched(Outputs):
    intervention = PatchHeads(HEADS, Z, positions=[2, 30])

    def edit(self, z, layer, head, positions):
        z = z.clone()
        for row, position in enumerate(positions):
            if position in (2, 30):
                z[:, row] = self.z.z[layer][0, head, position]
        return z


KINDS = {kind.__name__.lower(): kind for kind in (Redistributed, Calibrated, Forced, Zeroed, Averaged, Scaled, Patched)}


def logits(hf, ids: Tensor, **inputs: Tensor) -> Tensor:
    """Of a prompt and of STEPS cached steps after it, [batch, LENGTH + STEPS, vocab]."""
    with torch.no_grad():
        cache = DynamicCache()
        found = [hf(input_ids=ids[:, :LENGTH], past_key_values=cache, use_cache=True).logits]
        for step in range(LENGTH, ids.shape[1]):
            found.append(hf(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


def prompt(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randint(3, VOCAB - 1, (batch, LENGTH + STEPS), generator=torch.Generator().manual_seed(seed))


def case_for(kind: str, hf) -> Any:
    """The case, with what the model's windows and head size allow."""
    case: Any = KINDS[kind]()
    if kind == "forced" and hf.config.model_type != "llama":  # 8 tokens wide: the later queries do not see these keys
        case.intervention, case.queries = replace(case.intervention, queries=[17]), (17,)
    if hf.config.head_dim == 16 and kind in ("averaged", "patched"):
        case.z = Z16
        case.intervention = replace(case.intervention, **{"reference" if kind == "averaged" else "source": Z16})
    return case


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_equals_the_edited_map(models, name, kind):
    hf, ids = models[name], prompt()
    case = case_for(kind, hf)
    with engaged(hf, interventions=(case.intervention,)):
        found = logits(hf, ids)
    with dense(hf, case.map, case.output):
        expected = logits(hf, ids)
    plain = logits(hf, ids)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_interventions_compose_in_their_order(models, name):
    """Calibration moves what the redistribution left, and the forced row stands above both, before z is scaled."""
    hf, ids = models[name], prompt(seed=1)
    kinds = [case_for(kind, hf) for kind in ("redistributed", "calibrated", "forced", "scaled")]

    def all_maps(p, layer, first):
        for case in kinds:
            p = case.map(p, layer, first)
        return p

    first, *others = (case.intervention for case in kinds)
    with engaged(hf, interventions=(first,)), engaged(hf, interventions=tuple(others)):  # nested contexts add up
        found = logits(hf, ids)
    with dense(hf, all_maps, kinds[-1].output):
        expected = logits(hf, ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["redistributed", "calibrated", "forced"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_statistics_describe_the_edited_attention(models, name, kind):
    hf, ids = models[name], prompt(seed=2)
    case = case_for(kind, hf)
    sets = torch.zeros(1, 1, 2, 64, dtype=torch.bool)
    sets[..., 0, :4] = sets[..., 1, 10:14] = True
    request = Request(lse=True, entropy=True, distance=True, top=1, sets=sets, received=Band())
    recording = Recording(request, layers=range(2))
    with engaged(hf, interventions=(case.intervention,), observers=(recording,)):
        logits(hf, ids)
    found, maps = recording.stats(), {0: [], 1: []}

    def kept(p, layer, first):
        p = case.map(p, layer, first)
        maps[layer].append(torch.nn.functional.pad(p, (0, ids.shape[1] - p.shape[-1])))
        return p

    with dense(hf, kept):
        logits(hf, ids)
    i, j = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])
    for layer in range(2):
        p = torch.cat(maps[layer], 2)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found.distance[layer].double(), (p * (i - j)).sum(-1), **close)
        torch.testing.assert_close(found.entropy[layer].double(), -torch.special.xlogy(p, p).sum(-1), **close)
        torch.testing.assert_close(found.mass[layer].double(), p @ sets[0, 0, :, : len(j)].double().T, **close)
        torch.testing.assert_close(found.top_weight[layer, ..., 0].double(), p.amax(-1), **close)
        torch.testing.assert_close(found.received[layer].double(), p.sum(2) / torch.arange(len(j), 0, -1), **close)


def test_left_padded_batches_give_what_each_text_gives_alone(models):
    hf, first, second = models["llama"], prompt(seed=3)[:, :30], prompt(seed=4)[:, :40]
    heads = [(0, 0), (1, 2)]
    calibrate = CalibrateSinks(heads, threshold=2.0)
    padded = torch.cat([torch.cat([torch.zeros(1, 10, dtype=torch.int64), first], 1), second])
    mask = (torch.arange(40) >= torch.tensor([[10], [0]])).long()
    with torch.no_grad(), engaged(hf, interventions=(calibrate,)):
        alone = [hf(input_ids=ids).logits[0] for ids in (first, second)]
        left = hf(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        right = hf(input_ids=padded.roll(-10, 1) * torch.tensor([[1], [0]]) + padded * torch.tensor([[0], [1]]),
                   attention_mask=(torch.arange(40) < torch.tensor([[30], [40]])).long()).logits  # fmt: skip
    torch.testing.assert_close(left[0, 10:], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(right[0, :30], alone[0], rtol=1e-4, atol=1e-4)
    for batch in (left, right):
        torch.testing.assert_close(batch[1], alone[1], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (hf(input_ids=first).logits[0] - alone[0]).abs().max() > 1e-2


def test_the_packaged_model_in_prompt_and_generation(llama):
    text = (
        "The old lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the date in his book. " * 2
    )
    ids = llama.tokens(text).ids
    heads = [(12, 0), (18, 6), (19, 5), (20, 3)]
    sinks = {}

    def edit(p, layer, first):
        p = p.clone()
        for own, head in heads:
            if own == layer:
                if first == 0:
                    means = p[0, head].sum(0) / torch.arange(p.shape[-1], 0, -1)
                    sinks[own, head] = [j for j in range(1, p.shape[-1]) if means[j] > 3 / p.shape[-1]]
                sources = torch.isin(torch.arange(p.shape[-1]), torch.tensor(sinks[own, head]))
                p[:, head] = move(p[:, head], sources, ~sources, 0.4)
        return p

    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with llama.intervene(CalibrateSinks(heads, threshold=3.0)):
        found = llama.hf.generate(ids[None], **options)
    with dense(llama.hf, edit):
        expected = llama.hf.generate(ids[None], **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(found.logits), torch.cat(expected.logits), rtol=1e-4, atol=2e-4)
    plain = llama.hf.generate(ids[None], **options)
    assert (torch.cat(plain.logits)[0] - torch.cat(expected.logits)[0]).abs().max() > 0.01
