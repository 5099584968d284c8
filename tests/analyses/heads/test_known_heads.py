"""The scores of the packaged model beside retrieval: every head has each, and the known layers and heads stand out."""

from __future__ import annotations

import pytest
import torch

from probe.analyses import heads
from probe.analyses.heads import copying
from probe.analyses.heads import patterns as pattern_heads
from probe.analyses.heads.catalogue import SCORES, HeadCatalogue
from probe.models import Model

KINDS = tuple(SCORES)[1:]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(llama: Model) -> HeadCatalogue:
    return heads.run(llama, kinds=[kind.replace("_", "-") for kind in KINDS]).catalogue


def test_every_head_has_every_score(found: HeadCatalogue):
    table = found.to_df()
    assert list(found.scores) == list(KINDS) and len(table) == 270
    assert not table.isna().any().any()
    assert (table["induction"].diff().dropna() <= 0).all()
    assert (table["kv_group"] == table["head"] // 3).all()
    for kind in ("induction", "previous_token", "duplicate_token", "sink"):
        assert ((table[f"{kind}_low"] <= table[kind]) & (table[kind] <= table[f"{kind}_high"])).all()
    assert "copying_low" not in table  # computed from the weights: nothing was sampled
    assert found.notes == ("copying: gains of the input norms and the final norm folded in",)


def test_the_first_token_takes_a_third_of_the_attention(found: HeadCatalogue):
    assert 0.30 < found.scores["sink"].mean() < 0.35
    by_layer = found.per_sample["sink"].mean((0, 2))
    assert by_layer[:3].max() <= 0.07
    assert 0.09 <= by_layer[3:10].min() and by_layer[3:10].max() <= 0.22
    assert by_layer[10:12].max() <= 0.04  # the first sink regime ends, the second has not begun
    assert 0.25 <= by_layer[12:29].min() and by_layer[12:29].max() <= 0.68


def test_each_score_is_that_of_its_scorer(llama: Model, found: HeadCatalogue):
    patterns = pattern_heads.measure(llama, sequences=1).data  # the first sequence is the same for any number of them
    for pattern in pattern_heads.PATTERNS:
        torch.testing.assert_close(found.per_sample[pattern][:1], patterns[pattern], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.scores["copying"], copying.measure(llama).data["copying"])
