"""torch.compile over a model whose attention runs through the engine: a graph break at most, and the same numbers."""

from __future__ import annotations

import pytest
import torch

from probe.engine.attention import engaged
from probe.engine.recording import Recording
from probe.heads import Head
from probe.interventions.prune import PruneHeads
from probe.kernels.contract import Band, Request
from tests.probe.architectures import VOCAB, build

pytestmark = pytest.mark.slow


def test_a_compiled_model_gives_the_same_logits_and_statistics_under_an_intervention():
    hf = build("gemma2")
    interventions = (PruneHeads([Head(1, 2)]),)
    ids = torch.randint(0, VOCAB, (2, 21), generator=torch.Generator().manual_seed(1))
    found = []
    for model in (hf, torch.compile(hf, backend="aot_eager")):
        recording = Recording(Request(lse=True, entropy=True, top=1, received=Band()), layers=(0, 1))
        with torch.no_grad(), engaged(hf, observers=(recording,), interventions=interventions):
            logits = model(ids).logits
        found.append((logits, recording.stats().tensors()))
    torch._dynamo.reset()
    (logits, statistics), (compiled, others) = found
    torch.testing.assert_close(compiled, logits, atol=1e-5, rtol=1e-5)
    assert statistics.keys() == others.keys()
    for name, statistic in statistics.items():
        torch.testing.assert_close(others[name], statistic, atol=1e-5, rtol=1e-5)


def test_a_model_compiled_before_is_followed_into_and_out_of_the_context():
    hf = build("llama")
    compiled = torch.compile(hf, backend="aot_eager")
    ids = torch.randint(0, VOCAB, (1, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = compiled(ids).logits
        with engaged(hf, interventions=(PruneHeads([Head(0, 1)]),)):
            pruned = compiled(ids).logits
            expected = hf(ids).logits
        after = compiled(ids).logits
    torch._dynamo.reset()
    assert (pruned - before).abs().max() > 1e-3
    torch.testing.assert_close(pruned, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
