"""The engine against Hugging Face's own eager maps, architecture by architecture.

Expected statistics are computed here, in float64, from the eager attention maps by plain loops over their definition,
independent of `probe.kernels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from probe import ProbeError
from probe.engine.attention import engaged, text_config
from probe.engine.recording import AttentionStats, Recording
from probe.engine.seam import check_seam
from probe.kernels.contract import Band, Request
from tests.probe.architectures import BUILDERS, BYPASSES, VOCAB, build

LENGTH, PROMPT, W, TOP = 20, 13, 4, 3
START, STOP, LO, HI = 5, 18, 1, 9
BAND = Band(start=START, stop=STOP, lo=LO, hi=HI)


@pytest.fixture(scope="module", params=list(BUILDERS))
def hf(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def sequence(seed: int, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB - 1, (1, length), generator=generator)


@dataclass
class Eager:
    """Maps of the eager implementation, [batch, heads, queries, positions] float64 a layer, and the logits."""

    maps: list[Tensor]
    logits: Tensor


@torch.no_grad()
def eager(hf: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Eager:
    former = text_config(hf)._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        options = {} if mask is None else {"attention_mask": mask, "position_ids": positions}
        output = hf(input_ids=ids, output_attentions=True, use_cache=False, **options)
    finally:
        hf.set_attn_implementation(former)
    return Eager([layer.double() for layer in output.attentions], output.logits)


def everything(sets: Tensor) -> Request:
    return Request(
        lse=True, entropy=True, distance=True, windowed_distance=W, top=TOP, sets=sets, partial=True,
        received=BAND, pooled=(7, 5),
    )  # fmt: skip


def key_sets(length: int) -> Tensor:
    sets = torch.zeros(1, 1, 3, length, dtype=torch.bool)
    sets[0, 0, 0, 0] = True
    sets[0, 0, 1, 3:9] = True
    sets[0, 0, 2] = True
    return sets


def assert_equal(actual: Tensor, expected: Tensor, name: str) -> None:
    """Equal to 1e-5 of the largest value: float32 rounding of a logit is relative to the terms it is summed from."""
    largest = expected.double().nan_to_num().clamp(-1e6, 1e6).abs().max().clamp(min=1.0)
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=1e-5,
        atol=1e-5 * float(largest),
        equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )


def check_rows(stats: AttentionStats, maps: list[Tensor], first: int = 0) -> None:
    """Row statistics of unpadded sequences from their maps; `first` is the position of the first query."""
    for index, p in enumerate(maps):
        queries, keys = p.shape[-2:]
        i = torch.arange(first, first + queries).double()[:, None]
        j = torch.arange(keys).double()[None, :]
        log_p = torch.where(p > 0, p, 1.0).log()
        assert_equal(stats.entropy[index], -(p * log_p).sum(-1), "entropy")
        assert_equal(stats.distance[index], (p * (i - j)).sum(-1), "distance")
        assert_equal(stats.windowed_distance[index], (p * (i - j).clamp(max=W)).sum(-1), "windowed_distance")
        assert_equal(stats.mass[index], p @ key_sets(keys)[0, 0].double().T, "mass")
        visible = (p > 0).sum(-1).clamp(max=TOP)
        ranked = torch.sort(p, dim=-1, descending=True, stable=True)
        gaps = torch.nn.functional.pad(-ranked.values.diff(dim=-1), (1, 1), value=math.inf)  # above rank k, below it
        for k in range(TOP):
            seen = visible > k
            assert_equal(stats.top_weight[index][..., k][seen], ranked.values[..., k][seen], "top_weight")
            # a key is only determined where the weights beside it differ by more than rounding
            clear = seen & (torch.minimum(gaps[..., k], gaps[..., k + 1]) > 1e-6)
            assert clear.any()
            assert torch.equal(stats.top_key[index][..., k][clear], ranked.indices[..., k][clear])


def expected_received(p: Tensor) -> Tensor:
    """Mean over the band, by the definition, of one sequence's map [batch, heads, positions, positions]."""
    length = p.shape[-1]
    out = torch.full((*p.shape[:2], length), math.nan, dtype=torch.float64)
    for j in range(length):
        rows = [i for i in range(START, min(STOP, length)) if LO <= i - j <= HI]
        if rows:
            out[..., j] = p[:, :, rows, j].mean(-1)
    return out


def expected_pooled(p: Tensor, rows: int, cols: int) -> Tensor:
    tall, wide = math.ceil(p.shape[-2] / rows), math.ceil(p.shape[-1] / cols)
    narrow = torch.stack([columns.amax(-1) for columns in p.split(wide, dim=-1)], -1)
    return torch.stack([block.amax(-2) for block in narrow.split(tall, dim=-2)], -2)


@torch.no_grad()
def run(hf: PreTrainedModel, ids: Tensor, request: Request, implementation: str = "blocked", **options: Tensor):
    recording = Recording(request, layers=range(text_config(hf).num_hidden_layers))
    with engaged(hf, observers=(recording,), implementation=implementation):
        logits = hf(input_ids=ids, use_cache=False, **options).logits
    return logits, recording.stats()


@pytest.mark.parametrize("implementation", ["blocked", "reference"])
def test_single_sequence(hf: PreTrainedModel, implementation: str):
    ids = sequence(1)
    expected = eager(hf, ids)
    logits, stats = run(hf, ids, everything(key_sets(LENGTH)), implementation)
    assert_equal(logits, expected.logits, "logits")
    check_rows(stats, expected.maps)
    for index, p in enumerate(expected.maps):
        assert_equal(stats.received[index], expected_received(p), "received")
        assert_equal(stats.pooled[index], expected_pooled(p, 7, 5), "pooled")
        assert_equal(stats.partial[index, ..., 2, :].sum(-1), _z(hf, ids, index).sum(-1), "partial")


@torch.no_grad()
def _z(hf: PreTrainedModel, ids: Tensor, layer: int) -> Tensor:
    """Per-head output [batch, heads, queries, value_dim] of one layer, as the eager implementation computes it."""
    seen: dict[int, Tensor] = {}

    class Keep:
        def request(self, call):
            seen[call.layer] = call.value
            return None

        def observe(self, call, statistics):
            raise AssertionError("nothing was asked for")

    with engaged(hf, observers=(Keep(),)):
        hf(input_ids=ids, use_cache=False)
    p, value = eager(hf, ids).maps[layer], seen[layer].double()
    return p @ value.repeat_interleave(p.shape[1] // value.shape[1], dim=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_singles(hf: PreTrainedModel, side: str):
    lengths = [LENGTH, 15, 9]
    rows = [sequence(seed, length) for seed, length in enumerate(lengths, 2)]
    ids = torch.zeros(3, LENGTH, dtype=torch.int64)
    mask = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, single in enumerate(rows):
        place = slice(LENGTH - single.shape[1], None) if side == "left" else slice(0, single.shape[1])
        ids[row, place], mask[row, place] = single[0], True
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    request = Request(entropy=True, distance=True, windowed_distance=W, top=TOP, lse=True, received=Band())
    logits, stats = run(hf, ids, request, attention_mask=mask, position_ids=positions)
    for row, single in enumerate(rows):
        alone_logits, alone = run(hf, single, request)
        reference = eager(hf, single)
        assert_equal(logits[row : row + 1][mask[row : row + 1]], reference.logits[0], "logits")
        assert_equal(alone_logits, reference.logits, "logits alone")
        mine = stats.sequence(row)
        assert mine.first_query == 0
        for name, expected in alone.tensors().items():
            actual = getattr(mine, name)
            if name == "top_key":
                assert (actual == expected).float().mean() > 0.99  # near-ties may fall either way
            else:
                assert_equal(actual, expected, name)


@pytest.mark.parametrize("cache", ["default", "full"])
def test_cached_decoding_equals_the_full_pass(hf: PreTrainedModel, cache: str):
    """Statistics of a prefill and of each cached step are those of one full pass, sliding caches included."""
    ids = sequence(7)
    request = Request(lse=True, entropy=True, distance=True, windowed_distance=W, top=TOP, received=BAND)
    full_logits, full = run(hf, ids, request)
    assert_equal(full_logits, eager(hf, ids).logits, "full pass")
    recording = Recording(request, layers=range(text_config(hf).num_hidden_layers))
    state = DynamicCache(config=hf.config.get_text_config(decoder=True)) if cache == "default" else DynamicCache()
    logits = []
    with torch.no_grad(), engaged(hf, observers=(recording,), implementation="blocked"):
        for start, stop in [(0, PROMPT), *((t, t + 1) for t in range(PROMPT, LENGTH))]:
            output = hf(input_ids=ids[:, start:stop], past_key_values=state, use_cache=True)
            logits.append(output.logits)
    stepped = recording.stats()
    assert_equal(torch.cat(logits, 1), full_logits, "logits")
    for name, expected in full.tensors().items():
        actual = getattr(stepped, name)
        if name == "top_key":
            assert (actual == expected).float().mean() > 0.99
        else:
            assert_equal(actual, expected, name)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_cached_decoding_of_a_padded_batch_equals_eager(hf: PreTrainedModel, side: str):
    """A padded prefill and cached steps, call by call against the eager maps of the same calls."""
    lengths = [PROMPT, 9, 6]
    ids = torch.cat([sequence(seed) for seed in (11, 12, 13)])
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, slice(0, PROMPT - length) if side == "left" else slice(length, PROMPT)] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    calls = [(0, PROMPT), *((t, t + 1) for t in range(PROMPT, LENGTH))]

    def run_calls(**options: bool) -> list:
        state = DynamicCache()
        return [
            hf(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=state,
                use_cache=True,
                **options,
            )
            for start, stop in calls
        ]

    former = text_config(hf)._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        expected = run_calls(output_attentions=True)
    finally:
        hf.set_attn_implementation(former)
    request = Request(entropy=True, distance=True, windowed_distance=W, top=1, sets=key_sets(LENGTH))
    recording = Recording(request, layers=range(text_config(hf).num_hidden_layers))
    with engaged(hf, observers=(recording,), implementation="blocked"):
        actual = run_calls()
    stats = recording.stats()
    for (start, stop), mine, theirs in zip(calls, actual, expected, strict=True):
        real = mask[:, start:stop]
        assert_equal(mine.logits[real], theirs.logits[real], f"logits of {start}:{stop}")
        i = torch.arange(start, stop).double()[:, None]
        j = torch.arange(stop).double()[None, :]
        for layer, p in enumerate(attention.double() for attention in theirs.attentions):
            log_p = torch.where(p > 0, p, 1.0).log()
            wanted = {
                "entropy": -(p * log_p).sum(-1),
                "distance": (p * (i - j)).sum(-1),
                "windowed_distance": (p * (i - j).clamp(max=W)).sum(-1),
                "top_weight": p.amax(-1, keepdim=True),
                "mass": p @ key_sets(LENGTH)[0, 0, :, :stop].double().T,
            }
            for name, value in wanted.items():
                got = getattr(stats, name)[layer][:, :, start:stop].transpose(1, 2)
                assert_equal(got[real], value.transpose(1, 2)[real], f"{name} of {start}:{stop}")


def test_seam_check_passes_and_restores_the_implementation(hf: PreTrainedModel):
    before = text_config(hf)._attn_implementation
    seam = check_seam(hf, sequence(3)[:, :12], text_config(hf).num_hidden_layers)
    assert text_config(hf)._attn_implementation == before
    assert seam.heads == 4 and seam.row_error < 1e-5 and seam.logit_error < 1e-5


@pytest.mark.parametrize("name", list(BYPASSES))
def test_an_architecture_that_bypasses_the_engine_is_refused_by_name(name: str):
    hf = build(name)
    with pytest.raises(ProbeError, match=type(hf).__name__):
        check_seam(hf, sequence(3), hf.config.num_hidden_layers)
