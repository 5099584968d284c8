"""Edits of the pattern: the map that they mean, the same under both implementations, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.kernels import reference
from probe.kernels.attend import attend, chosen
from probe.kernels.blocked import attention as blocked
from probe.kernels.contract import Band, Mask, Request
from probe.kernels.edits import Pinned, Reweighting
from tests.kernels.cases import cases, everything, scored, thorough

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def weights(query, key, value, **options):
    """The whole map [batch, heads, queries, keys], read off as the output for unit values."""
    unit = torch.eye(key.shape[2]).expand(*key.shape[:3], -1)
    return attend(query, key, unit, implementation="blocked", **options)[0]


def test_a_reweighted_set_has_its_weights_multiplied_and_the_row_normalised(sample):
    query, key, value = sample(queries=9, keys=9)
    sets = torch.zeros(1, 1, 2, 9, dtype=torch.bool)
    sets[0, 0, 0, 2:4], sets[0, 0, 1, 3:8] = True, True  # key 3 is in both
    factor = torch.tensor([0.5, 3.0])
    p = weights(query, key, value)
    change = torch.ones(9)
    change[2:4] *= 0.5
    change[3:8] *= 3
    expected = p * change / (p * change).sum(-1, keepdim=True)
    edit = Reweighting(sets, factor.log().expand(1, 1, 9, 2))
    torch.testing.assert_close(weights(query, key, value, edits=(edit,)), expected)


def test_factors_are_by_query_and_minus_infinity_removes(sample):
    query, key, value = sample(queries=6, keys=6)
    sets = torch.arange(6)[None, None, None] < 2
    log = torch.zeros(1, 1, 6, 1)
    log[:, :, 4:] = -math.inf
    log[:, :, 1] = -math.inf  # all that query 1 sees
    p, edited = weights(query, key, value), weights(query, key, value, edits=(Reweighting(sets, log),))
    assert torch.equal(edited[:, :, [0, 2, 3]], p[:, :, [0, 2, 3]])
    rest = p[:, :, 4:, 2:]
    torch.testing.assert_close(edited[:, :, 4:, 2:], rest / rest.sum(-1, keepdim=True))
    assert (edited[:, :, 4:, :2] == 0).all() and (edited[:, :, 1] == 0).all()


def test_a_pinned_row_is_as_given_and_hidden_keys_stay_hidden(sample):
    query, key, value = sample(queries=6, keys=6)
    given = torch.tensor([[0.25, 0.0, 0.75, 0, 0, 0], [0.1, 0, 0, 0.4, 0.3, 0.2]])
    edit = Pinned(torch.tensor([[3, 4]]), given.log()[None, None])
    p, edited = weights(query, key, value), weights(query, key, value, edits=(edit,))
    torch.testing.assert_close(edited[0, 0, 3], given[0])
    torch.testing.assert_close(edited[0, 0, 4], given[1] * torch.tensor([1, 1, 1, 1, 1, 0]) / 0.8)
    assert torch.equal(edited[:, :, [0, 1, 2, 5]], p[:, :, [0, 1, 2, 5]])


def test_edits_apply_in_their_order(sample):
    query, key, value = sample(queries=5, keys=5)
    pinned = Pinned(torch.tensor([[4]]), torch.full((1, 1, 1, 5), 0.2).log())
    half = Reweighting(torch.arange(5)[None, None, None] < 1, torch.full((1, 1, 5, 1), 0.5).log())
    torch.testing.assert_close(weights(query, key, value, edits=(pinned, half))[0, 0, 4, 0], torch.tensor(0.1 / 0.9))
    torch.testing.assert_close(weights(query, key, value, edits=(half, pinned))[0, 0, 4, 0], torch.tensor(0.2))


@st.composite
def edits_for(draw, shape):
    batch, heads, queries, keys = shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    lead = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])))
    found = []
    for kind in draw(st.lists(st.sampled_from(["sets", "sparse sets", "pinned"]), min_size=1, max_size=3)):
        if kind == "pinned":
            count = draw(st.integers(1, queries))
            own = [
                torch.randperm(queries, generator=generator)[:count] for _ in range(draw(st.sampled_from([1, batch])))
            ]
            rows = torch.stack(own)
            log = torch.randn(*lead, count, keys, generator=generator)
            log[torch.rand(log.shape, generator=generator) < 0.2] = -math.inf
            found.append(Pinned(rows, log))
        else:
            share = 0.5 if kind == "sets" else 0.05
            sets = torch.rand(*lead, 3, keys, generator=generator) < share
            log = torch.randn(*lead, queries, 3, generator=generator)
            log[torch.rand(log.shape, generator=generator) < 0.1] = -math.inf
            found.append(Reweighting(sets, log))
    return tuple(found)


@given(data=st.data(), case=cases(), budget=st.sampled_from([600, 3000, None]))
@settings(thorough, max_examples=80)
def test_blocked_equals_the_reference(poisoned_empty, sample, same_statistics, data, case, budget):
    query, key, value = sample(**case.pop("tensors"))
    options = scored(**case, edits=data.draw(edits_for((*query.shape[:3], key.shape[2]))))
    output, found = blocked.attend(query, key, value, budget=budget, **options)
    expected, exact = reference.attend(query, key, value, **options)
    torch.testing.assert_close(output.double(), expected, atol=2e-5, rtol=2e-5)
    same_statistics(found, exact, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_take_edits_as_constants(sample, softcap):
    edits = (
        Reweighting(torch.rand((1, 4, 2, 70)) < 0.3, torch.randn(2, 1, 40, 2)),
        Pinned(torch.tensor([[3, 39], [0, 39]]), torch.randn(1, 4, 2, 70)),
    )
    found = []
    for name in ("blocked", "reference"):
        leaves = [t.requires_grad_() for t in sample(batch=2, kv_heads=2, group=2, queries=40, keys=70)]
        output, _ = attend(*leaves, mask=Mask(first_query=30), softcap=softcap, edits=edits, implementation=name)
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for mine, exact in zip(*found, strict=True):
        assert exact.abs().max() > 0.01
        torch.testing.assert_close(mine, exact, atol=1e-4, rtol=1e-4)
    assert (found[0][0][0, :, [3, 39]] == 0).all()  # a pinned row depends on no query
    assert (found[0][0][1, :, [0, 39]] == 0).all() and (found[0][0][1, :, 3] != 0).any()


def test_an_edit_of_some_heads_is_the_edit_of_all_cut_down(sample):
    query, key, value = sample(kv_heads=4, queries=8, keys=8)
    edit = Reweighting(torch.rand(1, 4, 2, 8) < 0.4, torch.randn(1, 4, 8, 2))
    whole, part = attend(query, key, value, edits=(edit,))[0], [1, 3]
    some = attend(query[:, part], key[:, part], value[:, part], edits=(edit.of_heads(part),))[0]
    torch.testing.assert_close(some, whole[:, part])


def test_auto_takes_an_implementation_that_can_edit(sample):
    query, key, value = sample(queries=4, keys=4)
    edit = Reweighting(torch.ones(1, 1, 1, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 1))
    assert chosen(query, key, edits=(edit,)) == "blocked"
    with pytest.raises(ValueError, match="sdpa: cannot edit the pattern"):
        attend(query, key, value, edits=(edit,), implementation="sdpa")


SETS, LOG = torch.ones(1, 1, 1, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 1)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Reweighting(SETS[..., :3], LOG), "edit.sets: expected"),
        (Reweighting(SETS.float(), LOG), "edit.sets: expected"),
        (Reweighting(SETS, LOG[:, :, :3]), r"edit.log: expected \[1, 1, 4, 1\] floating"),
        (Reweighting(SETS, LOG.int()), "edit.log: expected"),
        (Pinned(torch.tensor([[4]]), LOG.mT), r"edit.rows: expected different query indices in \[0, 4\), got \[4\]"),
        (Pinned(torch.tensor([[1, 1]]), torch.zeros(1, 1, 2, 4)), "edit.rows: expected different"),
        (Pinned(torch.tensor([[1.0]]), LOG.mT), r"edit.rows: expected \[1, rows\] int64"),
        (Pinned(torch.tensor([[1]]), LOG), r"edit.log: expected \[1, 1, 1, 4\]"),
    ],
)
def test_edits_that_do_not_fit_are_refused(sample, edit, said):
    with pytest.raises(ValueError, match=said):
        attend(*sample(queries=4, keys=4), edits=(edit,))


def test_statistics_describe_the_edited_pattern(sample):
    query, key, value = sample(queries=12, keys=12)
    edit = Pinned(torch.arange(12)[None], torch.eye(12).log()[None, None])  # every query attends to itself alone
    _, found = attend(query, key, value, edits=(edit,), request=everything(12, top=1, received=Band()))
    assert (found.entropy.abs() < 1e-6).all() and (found.distance == 0).all() and (found.top_weight == 1).all()
    assert torch.equal(found.top_key[0, 0, :, 0], torch.arange(12))
    torch.testing.assert_close(found.received[0, 0], 1 / torch.arange(12, 0, -1))
    assert Request(lse=True) and (found.lse.abs() < 1e-6).all()
