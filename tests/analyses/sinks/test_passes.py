"""The passes of the sink analysis on tiny models and on samples written by hand."""

from __future__ import annotations

import pytest
import torch

from probe.analyses.sinks.passes import SinkObserver, massive_dims, targets
from probe.analyses.sinks.statistics import row_counts
from probe.engine.attention import engaged
from probe.interventions.sink_rules import uniform_column_means
from tests.probe.architectures import WINDOW, build

IDS = torch.arange(3, 33)[None]


@torch.no_grad()
def observed(name: str, *, even: bool = False) -> SinkObserver:
    """What a tiny model's attention shows; `even`: its queries are set to zero, so that it attends evenly."""
    hf, observer = build(name), SinkObserver()
    if even:
        for layer in hf.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    with engaged(hf, observers=(observer,)):
        hf(input_ids=IDS, use_cache=False)
    return observer


@pytest.mark.parametrize(
    "name, windows", [("llama", [None, None]), ("mistral", [WINDOW] * 2), ("gemma2", [WINDOW, None])]
)
def test_the_observer_notes_each_layers_window(name, windows):
    observer = observed(name, even=True)
    assert observer.windows == windows
    for means, window in zip(observer.column_means, windows, strict=True):
        expected = uniform_column_means(row_counts(IDS.shape[1]), window=window).expand(len(means), -1)
        torch.testing.assert_close(means.double(), expected, rtol=1e-5, atol=1e-7)


def test_the_value_ratio_is_that_of_each_heads_group():
    observer = observed("llama")
    ratio = observer.value_ratio[0]
    assert ratio.shape == (4,) and ratio[0] == ratio[1] != ratio[2] == ratio[3]


def sample(first: list[list[float]], massive: list[tuple[int, int, float]]) -> dict:
    """A sample of one layer a place: the first token's stream [places, hidden]; (position, dim, value) entries."""
    return {"first": first, "massive": [[0, "mlp", *entry, 1.0] for entry in massive]}


def test_what_is_set_and_where():
    places = [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")]
    sizes = (2000.0, 2600.0, 3200.0)
    streams = [[[0, 0, 0, 1], [0, 0, 0, size], [0, 0, 0, size + at], [0, 0, 0, 2]] for at, size in enumerate(sizes)]
    entries = [[(0, 3, 2000.0), (0, 1, -2500.0), (5, 2, 9999.0)], [(0, 3, -2600.0)], []]
    samples = [sample(stream, entry) for stream, entry in zip(streams, entries, strict=True)]
    assert massive_dims(samples) == [3, 1]  # of first tokens, by size; position 5 is none
    found = targets(samples, places, randoms=1, seed=0)
    assert [target.dim for target in found] == [3] * 3 and [target.layer for target in found] == [0] * 3
    assert [target.mean for target in found] == pytest.approx([2900, 2600, 2300])  # after layer 0, of the others
    assert all(target.others == (0, 2) and target.massive == (3, 1) for target in found)  # the next free, and one drawn
    assert targets(samples[:1], places, randoms=5, seed=0)[0].mean is None
    assert targets([sample(streams[0], [(5, 2, 9999.0)])], places, randoms=1, seed=0) == []
