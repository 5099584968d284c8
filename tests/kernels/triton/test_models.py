"""Whole models in the interpreter: prefill and cached decoding with every layer's attention in Triton."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from probe.engine.attention import engaged
from probe.engine.recording import Recording
from probe.kernels.contract import Band, Request
from probe.kernels.triton import attention as in_triton
from tests.probe.architectures import VOCAB, build

pytest.importorskip("triton")

PREFILL, STEPS = 40, 2


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_and_statistics_equal_the_reference(name, monkeypatch):
    hf = build(name)
    ids = torch.randint(3, VOCAB - 1, (1, PREFILL + STEPS), generator=torch.Generator().manual_seed(1))
    calls = []
    attend = in_triton.attend
    monkeypatch.setattr(in_triton, "attend", lambda *args, **options: calls.append(1) or attend(*args, **options))
    logits, found = run(hf, ids, "triton")
    assert len(calls) == 2 * (1 + STEPS)
    expected, exact = run(hf, ids, "reference")
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
    assert found.keys() == exact.keys()
    for statistic, values in found.items():
        assert torch.equal(values.isnan(), exact[statistic].isnan()), statistic
        torch.testing.assert_close(
            values.double().nan_to_num(), exact[statistic].double().nan_to_num(), atol=1e-4, rtol=1e-4
        )
