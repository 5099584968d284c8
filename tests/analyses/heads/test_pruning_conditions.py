from __future__ import annotations

from collections import Counter

import pytest

from probe.analyses.heads.pruning_conditions import Condition, Conditions
from probe.errors import UsageError
from probe.heads import Head

RANKED = tuple(sorted((Head(layer, head) for layer in range(6) for head in range(4)), key=lambda h: (h.head, h.layer)))


def drawn(sample: str = "a", **changes):
    return Conditions(**{"ranked": RANKED, "ks": (2, 6), "fills": ("zero", "uniform"), **changes}).draw(sample)


def test_all_conditions_are_there_once_the_baseline_first():
    conditions = list(drawn())
    assert conditions[0] == Condition("none", 0, None)
    assert len(conditions) == len(set(conditions)) == 1 + 2 * 3 * 2
    assert drawn()[conditions[0]] == ()


def test_the_top_is_the_head_of_the_list():
    assert drawn()[Condition("top", 2, "zero")] == RANKED[:2]
    assert drawn()[Condition("top", 6, "uniform")] == RANKED[:6]


@pytest.mark.parametrize("group", ["random", "same layers"])
def test_controls_come_from_outside_the_whole_top(group):
    for sample in "abcdefgh":
        for k in (2, 6):
            heads = drawn(sample)[Condition(group, k, "zero")]
            assert len(set(heads)) == len(heads) == k
            assert not set(heads) & set(RANKED[:6])  # for k = 2 too: the third best head is no control


def test_controls_of_the_same_layers_have_the_layers_of_the_top():
    for sample in "abc":
        heads = drawn(sample)[Condition("same layers", 6, "zero")]
        assert Counter(head.layer for head in heads) == Counter(head.layer for head in RANKED[:6])


def test_a_layer_without_other_heads_gives_what_it_has():
    ranked = (Head(0, 0), Head(0, 1), Head(0, 2), *(Head(1, head) for head in range(4)))
    heads = Conditions(ranked, (3,), ("zero",)).draw("a")[Condition("same layers", 3, "zero")]
    assert heads == ()


def test_both_fills_prune_the_same_heads():
    for group in ("top", "random", "same layers"):
        assert drawn()[Condition(group, 6, "zero")] == drawn()[Condition(group, 6, "uniform")]


def test_draws_repeat_per_sample_and_seed_and_differ_between_them():
    random6 = Condition("random", 6, "zero")
    assert drawn("a")[random6] == drawn("a")[random6]
    assert len({drawn(sample)[random6] for sample in "abcdefgh"}) > 5
    assert drawn("a", seed=1)[random6] != drawn("a", seed=2)[random6]


def test_the_order_of_the_rest_of_the_list_does_not_matter():
    shuffled = RANKED[:6] + RANKED[:5:-1]
    assert drawn(ranked=shuffled) == drawn()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (2, 13)}, "needs the same number of others"),
        ({"ks": ()}, "different positive"),
        ({"ks": (2, 2)}, "different positive"),
        ({"fills": ("mean",)}, "--fill"),
    ],
)
def test_conditions_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        drawn(**changes)
