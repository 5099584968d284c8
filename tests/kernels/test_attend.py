"""Known answers that every implementation must give, and the door."""

# A statistic that is None where a test reads it fails that test.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math

import pytest
import torch

from probe.kernels.attend import IMPLEMENTATIONS, attend, chosen, pool, tile
from probe.kernels.contract import Band, Mask, Request
from probe.kernels.native import build
from tests.kernels.cases import STATISTICIANS

pytestmark = pytest.mark.usefixtures("poisoned_empty")
everywhere = pytest.mark.parametrize("implementation", STATISTICIANS)


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(
        found.double(), torch.as_tensor(expected).double().expand_as(found), atol=atol, rtol=1e-5
    )


def uniform(keys: int, width: int = 4):
    return (
        torch.zeros(1, 2, keys, width),
        torch.ones(1, 1, keys, width),
        torch.arange(keys).float()[None, None, :, None],
    )


def long(implementation: str) -> int:
    """Return a length that takes several blocks; in Triton's interpreter a pair takes a thousand times longer."""
    return 160 if implementation == "triton" else 300


@everywhere
def test_uniform_rows(implementation):
    """A row over n keys: lse and entropy log n, the mean of the values, mean distance (n - 1) / 2."""
    n = torch.arange(1, long(implementation) + 1).double()
    query, key, value = uniform(len(n))
    request = Request(lse=True, entropy=True, distance=True)
    output, found = attend(query, key, value, request=request, implementation=implementation)
    close(output[..., 0], (n - 1) / 2, atol=1e-4)
    close(found.lse, n.log())
    close(found.entropy, n.log())
    close(found.distance, (n - 1) / 2)


@everywhere
@pytest.mark.parametrize("window", [1, 90])
def test_windowed_distance_of_uniform_rows_has_a_closed_form(implementation, window):
    n = torch.arange(1, long(implementation) + 1).double()
    expected = torch.where(n <= window + 1, (n - 1) / 2, (window * (window + 1) / 2 + window * (n - 1 - window)) / n)
    request = Request(windowed_distance=window)
    _, found = attend(*uniform(len(n)), request=request, implementation=implementation)
    close(found.windowed_distance, expected)


@everywhere
def test_identity_map(implementation, pointing):
    length = long(implementation)
    query, key = pointing(list(range(length)), length)
    request = Request(entropy=True, distance=True, windowed_distance=10, top=1)
    output, found = attend(query, key, key, scale=1.0, request=request, implementation=implementation)
    close(output, key)
    close(found.entropy, 0.0)
    close(found.distance, 0.0)
    close(found.windowed_distance, 0.0)
    close(found.top_weight, 1.0)
    assert found.top_key[0, 0, :, 0].tolist() == list(range(length))


@everywhere
def test_previous_token_map(implementation, pointing):
    length = long(implementation)
    query, key = pointing([0, *range(length - 1)], length)
    request = Request(distance=True, windowed_distance=10)
    _, found = attend(query, key, key, scale=1.0, request=request, implementation=implementation)
    expected = (torch.arange(length) >= 1).double()
    close(found.distance, expected)
    close(found.windowed_distance, expected)


@everywhere
@pytest.mark.parametrize("window", [3, 90])
def test_all_on_token_0(implementation, pointing, window):
    length = long(implementation)
    query, key = pointing([0] * length, length)
    request = Request(distance=True, windowed_distance=window, received=Band())
    _, found = attend(query, key, key, scale=1.0, request=request, implementation=implementation)
    t = torch.arange(length)
    close(found.distance, t)
    close(found.windowed_distance, t.clamp(max=window))
    close(found.received, (t == 0).double())


@everywhere
def test_received_sums_to_the_rows(implementation, sample):
    """Row sums are 1, so sum_j (N - j) received_j = N."""
    length = long(implementation) // 2
    query, key, value = sample(kv_heads=2, group=2, queries=length, keys=length, batch=2)
    _, found = attend(query, key, value, request=Request(received=Band()), implementation=implementation)
    left = torch.arange(length, 0, -1)
    close((found.received.double() * left).sum(-1), length, atol=1e-3)
    assert torch.equal(found.received_rows, left.expand(2, -1))


@everywhere
def test_received_of_uniform_rows_in_a_band(implementation):
    """FAI[s] is the mean of 1 / (t + 1) over s + lo <= t <= s + hi, NaN where there is no such t."""
    band = Band(start=20, stop=90, lo=10, hi=50)
    _, found = attend(*uniform(100), request=Request(received=band), implementation=implementation)
    rows = [[t for t in range(20, 90) if s + 10 <= t <= s + 50] for s in range(100)]
    assert found.received_rows[0].tolist() == [len(ts) for ts in rows]
    for s, ts in enumerate(rows):
        got = found.received[0, 1, s].item()
        assert math.isnan(got) if not ts else got == pytest.approx(sum(1 / (t + 1) for t in ts) / len(ts), rel=1e-5)


@everywhere
def test_a_planted_column_is_received(implementation):
    """Rows that give one key the weight c and share the rest: that key receives c."""
    length, at, c = 90, 17, 0.25
    rest = torch.arange(length).clamp(min=1).float()  # the other keys of row i
    query = (math.log(c / (1 - c)) + rest.log())[None, None, :, None]
    key = torch.zeros(1, 1, length, 1)
    key[0, 0, at] = 1
    request = Request(received=Band(start=30))
    _, found = attend(query, key, key, scale=1.0, request=request, implementation=implementation)
    assert found.received[0, 0, at].item() == pytest.approx(c, rel=1e-5)


@everywhere
def test_one_row_by_hand(implementation):
    """Scores log 1, log 2, log 5 and a sink of log 8: weights 1/16, 2/16, 5/16."""
    query = torch.ones(1, 1, 1, 1)
    key = torch.tensor([1.0, 2.0, 5.0]).log()[None, None, :, None]
    value = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])[None, None]
    sets = torch.tensor([[True, False, True], [False, False, False]])[None, None]
    request = Request(
        lse=True, entropy=True, distance=True, windowed_distance=1, top=3, sets=sets, partial=True, pooled=(1, 2)
    )
    output, found = attend(
        query, key, value, scale=1.0, sinks=torch.tensor([8.0]).log(), request=request, implementation=implementation
    )
    p = torch.tensor([1.0, 2.0, 5.0]) / 16
    close(output[0, 0, 0], torch.tensor([11.0, 12.0]) / 16)
    close(found.lse, math.log(16))
    close(found.entropy, -(p * p.log()).sum())
    close(found.distance, 4 / 16)
    close(found.windowed_distance, 3 / 16)
    close(found.top_weight[0, 0, 0], p.flip(0))
    assert found.top_key[0, 0, 0].tolist() == [2, 1, 0]
    close(found.mass[0, 0, 0], torch.tensor([6 / 16, 0]))
    close(found.partial[0, 0, 0], torch.tensor([[11 / 16, 10 / 16], [0, 0]]))
    close(found.pooled[0, 0], torch.tensor([[2 / 16, 5 / 16]]))


@everywhere
def test_softcap_by_hand(implementation):
    """tanh(atanh(0.5)) * 2 = 1 against a score of 0: odds e."""
    query = torch.full((1, 1, 1, 1), 2 * math.atanh(0.5))
    key = torch.tensor([1.0, 0.0])[None, None, :, None]
    output, _ = attend(
        query, key, key, scale=1.0, softcap=2.0, request=Request(lse=True), implementation=implementation
    )
    close(output, math.e / (math.e + 1))


@everywhere
def test_a_window_of_w_shows_w_keys(implementation):
    query, key, value = uniform(50)
    _, found = attend(query, key, value, mask=Mask(window=7), request=Request(lse=True), implementation=implementation)
    close(found.lse, torch.arange(1, 51).clamp(max=7).double().log())


@everywhere
def test_ties_go_to_the_lower_key(implementation):
    """Equal scores everywhere, and equal best scores at chosen keys far apart."""
    length = long(implementation)
    query, key, value = uniform(length, width=1)
    query = query + 1
    _, found = attend(query, key, value, request=Request(top=5), implementation=implementation)
    assert found.top_key[0, 0, -1].tolist() == [0, 1, 2, 3, 4]
    assert found.top_key[0, 1, 2].tolist() == [0, 1, 2, -1, -1]
    best = [5, 70, 71, 130, length - 10]
    key = key.clone()
    key[0, 0, best] = 3
    for k in (1, 4):
        _, found = attend(query, key, value, request=Request(top=k), implementation=implementation)
        assert found.top_key[0, 0, -1].tolist() == best[:k]
        assert found.top_key[0, 0, 100].tolist() == [5, 70, 71, 0][:k]


@everywhere
def test_a_query_that_sees_nothing(implementation, sample):
    """Left padding: the first two queries of the second text see no key, the rest is as if there were no padding."""
    query, key, value = sample(batch=2, kv_heads=2, group=2, queries=9, keys=9)
    mask = Mask(keys=torch.arange(9) >= torch.tensor([[0], [2]]))
    request = Request(
        lse=True,
        entropy=True,
        distance=True,
        windowed_distance=3,
        top=2,
        sets=torch.ones(1, 1, 1, 9, dtype=torch.bool),
        partial=True,
        received=Band(),
        pooled=(9, 9),
    )
    output, found = attend(query, key, value, mask=mask, request=request, implementation=implementation)
    blind = torch.zeros(2, 4, 9, dtype=torch.bool)
    blind[1, :, :2] = True
    assert torch.equal(output.abs().sum(-1) == 0, blind)
    assert torch.equal(found.lse == -math.inf, blind)
    for name in ("entropy", "distance", "windowed_distance"):
        assert torch.equal(getattr(found, name).isnan(), blind), name
    assert torch.equal(found.mass[..., 0].isnan(), blind)
    assert torch.equal((found.top_key == -1).all(-1), blind)
    assert not found.top_weight[blind].any()
    assert not found.partial[blind].any()
    assert not found.pooled[1, :, :2].any()
    alone, expected = attend(
        query[1:, :, 2:],
        key[1:, :, 2:],
        value[1:, :, 2:],
        request=Request(entropy=True, received=Band()),
        implementation=implementation,
    )
    close(output[1:, :, 2:], alone)
    close(found.entropy[1:, :, 2:], expected.entropy)
    close(found.received[1:, :, 2:], expected.received)
    # a padded key is in no text: it receives nothing from the seven real queries that come after it
    assert found.received_rows[1].tolist() == [7, 7, 7, 6, 5, 4, 3, 2, 1]
    assert not found.received[1, :, :2].any()


@everywhere
def test_a_decode_step_equals_the_last_row_of_a_full_pass(implementation, sample):
    query, key, value = sample(kv_heads=2, group=3, queries=40, keys=40)
    request = Request(lse=True, entropy=True, distance=True, windowed_distance=4, top=3)
    output, full = attend(query, key, value, request=request, implementation=implementation)
    # a cache with room for 24 more
    room = torch.full((1, 2, 24, 8), 1e4)
    last, step = attend(
        query[:, :, 39:],
        torch.cat([key, room], 2),
        torch.cat([value, room], 2),
        mask=Mask(first_query=39),
        request=request,
        implementation=implementation,
    )
    close(last, output[:, :, 39:].double())
    for name in ("lse", "entropy", "distance", "windowed_distance", "top_weight", "top_key"):
        close(getattr(step, name), getattr(full, name)[:, :, 39:].double())


@everywhere
def test_mask_none_is_causal_with_the_last_query_at_the_last_key(implementation, sample):
    query, key, value = sample(queries=5, keys=12)
    request = Request(lse=True)
    _, found = attend(query, key, value, request=request, implementation=implementation)
    _, expected = attend(query, key, value, mask=Mask(first_query=7), request=request, implementation=implementation)
    assert torch.equal(found.lse, expected.lse)


@everywhere
def test_first_key_moves_positions_and_changes_nothing_else(implementation, sample):
    """A sliding cache that has dropped 20 keys: query 30 is at key column 10."""
    query, key, value = sample(queries=3, keys=13)
    request = Request(lse=True, distance=True, top=2, received=Band(start=31))
    _, here = attend(
        query,
        key,
        value,
        mask=Mask(first_query=10),
        request=Request(lse=True, distance=True, top=2, received=Band(start=11)),
        implementation=implementation,
    )
    _, there = attend(
        query, key, value, mask=Mask(first_query=30, first_key=20), request=request, implementation=implementation
    )
    close(there.lse, here.lse)
    close(there.distance, here.distance)
    assert torch.equal(there.top_key, here.top_key + 20)
    close(there.received, here.received)


@everywhere
def test_gqa_head_h_reads_kv_head_h_over_group(implementation, sample):
    query, key, value = sample(kv_heads=2, group=3, queries=20, keys=20)
    output, found = attend(query, key, value, request=Request(entropy=True), implementation=implementation)
    for head in range(6):
        one = slice(head // 3, head // 3 + 1)
        alone, expected = attend(
            query[:, head : head + 1],
            key[:, one],
            value[:, one],
            request=Request(entropy=True),
            implementation=implementation,
        )
        close(output[:, head : head + 1], alone.double())
        close(found.entropy[:, head : head + 1], expected.entropy.double())


@everywhere
def test_tile_and_pool_repeat_the_weights(implementation, sample):
    """From q, k and lse, learned sinks included: rows of the map sum to 1 less the sink's weight."""
    rows = long(implementation) // 2
    query, key, value = sample(kv_heads=2, group=2, queries=rows, keys=rows + 20)
    sinks = torch.tensor([0.0, 1.0, 2.0, 3.0])
    mask = Mask(first_query=20, window=60)
    request = Request(lse=True, pooled=(16, 20))
    _, found = attend(
        query, key, value, mask=mask, sinks=sinks, softcap=9.0, request=request, implementation=implementation
    )
    options = {"mask": mask, "softcap": 9.0, "implementation": implementation}
    p = tile(query, key, found.lse, **options)
    close(p.sum(-1), 1 - (sinks[:, None] - found.lse).exp())
    part = tile(query, key, found.lse, rows=range(40, rows - 1, 2), cols=range(3, rows + 10, 5), **options)
    close(part, p[:, :, 40 : rows - 1 : 2, 3 : rows + 10 : 5], atol=1e-7)
    close(pool(query, key, found.lse, shape=(16, 20), **options), found.pooled)
    assert p.max() == pytest.approx(found.pooled.max().item(), rel=1e-5)


@everywhere
def test_one_that_is_not_asked_for_is_none(implementation, sample):
    query, key, value = sample()
    _, found = attend(query, key, value, request=Request(entropy=True), implementation=implementation)
    assert [name for name in found.__slots__ if getattr(found, name) is not None] == ["entropy"]


def test_auto_takes_the_first_that_can_serve_and_says_so(sample):
    query, key, value = sample(queries=3, keys=3)
    assert chosen(query, key) == "sdpa"
    fastest = "native" if build.unavailable() is None else "blocked"
    assert chosen(query, key, request=Request(lse=True)) == fastest
    assert chosen(query, key, softcap=2.0) == fastest
    assert chosen(query.double(), key.double(), request=Request(lse=True)) == "blocked"
    assert chosen(query, key, implementation="reference") == "reference"
    output, _ = attend(query, key, value, request=Request(lse=True))
    assert output.dtype == torch.float32
    assert attend(query, key, value, implementation="reference")[0].dtype == torch.float64


def test_an_unknown_implementation_names_those_that_exist(sample):
    with pytest.raises(ValueError, match=r"expected one of auto, sdpa, .*blocked, reference, got 'fast'"):
        attend(*sample(), implementation="fast")
    with pytest.raises(ValueError, match="got 'fast'"):
        chosen(*sample()[:2], implementation="fast")


def test_an_implementation_that_cannot_serve_is_refused_by_name_and_passed_over_by_auto(sample, monkeypatch, tmp_path):
    (tmp_path / "picky_attention.py").write_text(
        "def refusal(query, key, **options):\n"
        "    return 'needs 16 keys' if key.shape[2] < 16 else None\n"
        "def attend(query, key, value, **options):\n"
        "    return 'picky'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("probe.kernels.attend.IMPLEMENTATIONS", {"picky": "picky_attention", **IMPLEMENTATIONS})
    few, many = sample(keys=8), sample(keys=16)
    with pytest.raises(ValueError, match=r"picky: needs 16 keys; expected one of picky, sdpa, .*blocked, reference"):
        attend(*few, implementation="picky")
    assert chosen(*few[:2]) == "sdpa"
    assert chosen(*many[:2]) == "picky"
    assert attend(*many) == "picky"
    with pytest.raises(ValueError, match="picky: has no tile"):
        tile(many[0], many[1], torch.zeros(1, 1, 8), implementation="picky")


def test_the_mask_is_checked_against_the_tensors(sample):
    with pytest.raises(ValueError, match=r"mask.keys: expected \[1, 8\] bool on cpu, got \[1, 7\] torch.bool on cpu"):
        attend(*sample(), mask=Mask(keys=torch.ones(1, 7, dtype=torch.bool)))
