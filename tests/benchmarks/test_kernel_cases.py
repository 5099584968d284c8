"""The cases compute what they are compared with."""

import pytest
import torch

from probe.benchmarks.kernel_cases import OTHERS, dense, inputs, requests, serving, work
from probe.benchmarks.plan import SDPA, Case, Settings
from probe.kernels.attend import IMPLEMENTATIONS, attend

SETTINGS = Settings(threads=1, heads=4, kv_heads=2, head_dim=16)


def test_dense_gives_the_statistics_that_ours_gives():
    query, key, value = inputs(SETTINGS, 67)
    output, found = attend(query, key, value, request=requests(67)["columns"], implementation="reference")
    expected = (output, found.lse, found.entropy, found.distance, found.top_weight[..., 0], found.top_key[..., 0])
    for one, other in zip(dense(query, key, value), (*expected, found.received), strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-4, rtol=1e-4)


def test_plain_and_ours_give_one_output():
    outputs = [work(SDPA, SETTINGS, 67).call()]
    for statistics in ("rows", "columns", "sets"):
        case = Case(name=statistics, method="attend", implementation="blocked", statistics=statistics)
        output, found = work(case, SETTINGS, 67).call()
        assert (found.received is not None) == (statistics != "rows") and found.entropy is not None
        assert (found.mass is not None) == (statistics == "sets") == (found.windowed_distance is not None)
        outputs.append(output)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)


def test_the_key_sets():
    first, inside, some, second = requests(600)["sets"].sets[0, 0]
    assert first.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert inside.nonzero().flatten().tolist() == list(range(200, 240))
    assert 30 <= some.sum() <= 90 and second.nonzero().flatten().tolist() == list(range(300, 600))


def test_every_implementation_is_measured_or_says_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    found = serving(SETTINGS)
    assert set(found) == set(IMPLEMENTATIONS) - set(OTHERS)
    assert found["blocked"] == "" and "GPU" in found["triton"]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="expected a method of a kernel case, got 'x'"):
        work(Case(name="x", method="x"), SETTINGS, 8)
