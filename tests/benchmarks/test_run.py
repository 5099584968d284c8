"""From measurements to a result: multiples, what is not tried again, and what makes a run another run."""

import math
from dataclasses import replace

import pytest

from probe.benchmarks import run
from probe.benchmarks.crew import Measured
from probe.benchmarks.plan import PEERS, PLAIN, PRODUCTS, SDPA, Group, Settings

SETTINGS = Settings(threads=1, lengths=(64,))


def record(case, *seconds):
    return Measured(case, seconds=list(seconds), held=1000, peak=1500).record()


def test_multiples_are_of_the_medians_of_the_group():
    kernels = Group(suite="kernels", length=64, cases=(SDPA, PRODUCTS), rounds=3)
    peer = Group(suite="model", length=64, cases=(PLAIN, PEERS[0]), rounds=2, peer=True)
    done = {
        kernels.name: {"cases": [record(SDPA, 1.0, 2.0, 9.0), record(PRODUCTS, 0.5, 0.5, 0.1)]},
        peer.name: {"cases": [record(PLAIN, 4.0, 6.0), record(PEERS[0], 10.0, 30.0)]},
    }
    rows = run.table([kernels, peer], done).to_dict(orient="records")
    assert [row["ratio"] for row in rows] == [1.0, 0.25, 1.0, 4.0]
    assert [row["products"] for row in rows[:2]] == [4.0, 1.0] and all(math.isnan(row["products"]) for row in rows[2:])
    assert [row["peer"] for row in rows] == [False, False, True, True] and rows[0]["growth"] == 500


@pytest.mark.parametrize("status, tried", [("out of memory", False), ("timeout", False), ("error", True)])
def test_what_was_too_much_for_a_shorter_text_is_not_tried_with_a_longer(status, tried):
    group = Group(suite="model", length=64, cases=(PLAIN, PEERS[0]), rounds=2, peer=True)
    failed = Measured(PEERS[0], status=status, reason="out of memory at 1 GB").record()
    done = {"checked": {"facts": {}}, group.name: {"length": 64, "cases": [failed]}}
    found = run._skipped(replace(group, length=128), done)
    assert bool(found) is not tried
    if found:
        assert (found[0]["status"], found[0]["reason"]) == ("skipped", "out of memory at 1 GB with 64 tokens already")
    assert not run._skipped(replace(group, length=32), done)
    assert not run._skipped(replace(group, length=128, cases=(PLAIN, PEERS[1])), done)
    assert not run._skipped(replace(group, length=128, peer=False), done)


def test_what_is_measured_is_compared_with_the_reference(monkeypatch):
    monkeypatch.setattr(run, "kernel_tests", lambda: None)
    settings = replace(SETTINGS, only=("blocked",), head_dim=16)
    checked = run.check(settings, run.groups(settings, ["blocked"]), None, pytest.fail)
    assert checked["tests"] is None and checked["difference"].keys() == {"blocked"}
    assert 0 < checked["difference"]["blocked"] < 1e-5


def test_another_machine_or_other_options_are_another_run(monkeypatch):
    first = run.config(SETTINGS)
    assert first == run.config(SETTINGS) and len(first["code"]) == 16
    assert run.config(replace(SETTINGS, threads=2)) != first
    monkeypatch.setattr(run, "processor", lambda: "another")
    assert run.config(SETTINGS) != first


def test_other_kernels_are_another_run(monkeypatch, tmp_path):
    """The sources are found where kernels/ is a link, and where it is a folder."""
    root, kernels = tmp_path / "probe", tmp_path / "kernels"
    root.mkdir()
    kernels.mkdir()
    (root / "__init__.py").write_text("")
    (kernels / "attention.cpp").write_text("one")
    (root / "kernels").symlink_to("../kernels")
    monkeypatch.setattr(run.probe, "__file__", str(root / "__init__.py"))
    first = run.code()
    (kernels / "attention.cpp").write_text("two")
    second = run.code()
    (root / "kernels").unlink()
    kernels.rename(root / "kernels")
    assert first != second == run.code()
