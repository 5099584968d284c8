"""What two circuits share: overlaps by hand, and a circuit compared with itself."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from probe.analyses.circuits import search
from probe.analyses.circuits.reuse import result as reuse
from probe.analyses.circuits.reuse.result import RUNS
from tests.analyses.circuits.runs import SEARCH, shared_run


def test_overlap_counts_shared_heads_and_shares_of_effects():
    table = pd.DataFrame({"name": list("abcd"), "first": [4.0, -3.0, 2.0, 1.0], "other": [-1.0, 3.0, 0.0, 4.0]})
    found = reuse.overlap(table, "other", k=2)
    assert found["shared"] == 1 and found["chance"] == 1.0  # {a, b} and {d, b}, signs aside
    assert found["weighted"] == pytest.approx(1 / 8 + 3 / 10 + 0 + 1 / 10)
    p = torch.tensor([1.0, -2.0, 3.0])
    assert reuse.weighted(p, -5 * p) == pytest.approx(1) and reuse.weighted(p, torch.tensor([0.0, 0, 0.1])) == 0.5


@pytest.mark.slow
def test_reuse_of_a_circuit_by_itself_is_whole(llama, tmp_path_factory):
    result, _ = shared_run(search, llama, SEARCH, tmp_path_factory)
    same = reuse.Reuse(manifest=result.manifest, k=5, **dict.fromkeys(RUNS, result))
    assert same.overlaps["shared"].tolist() == [5] * 6 and same.overlaps["weighted"].tolist() == pytest.approx([1] * 6)
    assert same.overlaps["chance"].iloc[0] == pytest.approx(25 / 270)
    assert same.shared() == result.stage("logits")["name"][:5].tolist() and "share 5 of 5" in same.summary()[0]
    assert list(same.figures()) == ["circuits", "scatter", "overlaps"]
    roles = same.roles().set_index("role")
    assert roles.loc["negative mover", "both"] == roles.loc["negative mover", "first"] == "L23H3"
    assert " ".join(roles["both"]).split() and (roles["first"] == roles["second"]).all()
