"""Whole models on a GPU: logits and statistics with Triton's kernels, against the reference and eager attention."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from probe.engine.attention import engaged
from probe.engine.recording import Recording
from probe.kernels.contract import Band, Request
from tests.probe.architectures import BUILDERS, VOCAB, build

PREFILL, STEPS = 100, 8
NAMES = [name for name in BUILDERS if name != "llava"]


def run(hf, ids, implementation: str):
    """Logits of every position, [1, positions, vocab], and the statistics of a prefill and single steps after it."""
    sets = torch.zeros(1, 1, 2, ids.shape[1], dtype=torch.bool)
    sets[..., 0, :4] = True
    sets[..., 1, 10:30] = True
    request = Request(
        lse=True, entropy=True, distance=True, windowed_distance=5, top=2, sets=sets, partial=True, received=Band()
    )
    recording = Recording(request, layers=range(2))
    cache = DynamicCache(config=hf.config)
    with torch.no_grad(), engaged(hf, observers=(recording,), implementation=implementation):
        logits = [hf(input_ids=ids[:, :PREFILL], past_key_values=cache, use_cache=True).logits]
        for step in range(PREFILL, ids.shape[1]):
            logits.append(hf(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, 1), recording.stats().tensors()


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_statistics_equal_the_reference_and_eager_attention(name):
    hf = build(name).to("cuda")  # pyright: ignore[reportArgumentType]  # transformers wraps `to`
    ids = torch.randint(3, VOCAB - 1, (1, PREFILL + STEPS), generator=torch.Generator().manual_seed(1)).cuda()
    logits, found = run(hf, ids, "auto")
    expected, exact = run(hf, ids, "reference")
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(logits, hf(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
    assert found.keys() == exact.keys()
    for statistic, values in found.items():
        assert torch.equal(values.isnan(), exact[statistic].isnan()), statistic
        if statistic != "top_key":
            torch.testing.assert_close(
                values.double().nan_to_num(), exact[statistic].double().nan_to_num(), atol=3e-4, rtol=3e-4
            )
