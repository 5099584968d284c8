import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.heads import Head
from probe.saving.jsonable import decode, dumps, encode, plain

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(Head, st.integers(), st.integers()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner),
)


def same(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (math.isnan(a) and math.isnan(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if type(a) is list:
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(values)
def test_encoded_values_survive_strict_json(value):
    text = dumps(encode(value))
    assert same(decode(json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))), value)


def test_plain_is_for_other_programs():
    scores = np.array([0.5, np.nan])
    assert plain({"head": Head(18, 6), "scores": scores, "bounds": (-math.inf, math.inf), 3: np.float32(0.25)}) == {
        "head": {"layer": 18, "head": 6},
        "scores": [0.5, None],
        "bounds": ["-Infinity", "Infinity"],
        "3": 0.25,
    }


@pytest.mark.parametrize("value", [{"a": object()}, {"a": [{1: 2}]}, {"a": {"$head": [1, 2]}}, {"a": {1, 2}}])
def test_what_json_cannot_hold_is_refused_by_place(value):
    with pytest.raises(TypeError, match=r"value\.a"):
        encode(value)


def test_a_nan_that_was_not_encoded_is_refused():
    with pytest.raises(ValueError):
        dumps([math.nan])
