"""Nothing is measured on red. Failing and passing tests are run by tests/app/test_bench.py."""

import sys
from types import ModuleType

import pytest
import torch

from probe.benchmarks.gate import check_agreement, difference, kernel_tests, run_tests
from probe.benchmarks.plan import Settings
from probe.errors import ProbeError
from probe.kernels import attend as door
from probe.kernels.blocked import attention as blocked

SETTINGS = Settings(threads=1, heads=4, kv_heads=2, head_dim=16)


@pytest.mark.slow
def test_no_test_is_no_green(tmp_path):
    with pytest.raises(ProbeError, match="nothing is measured"):
        run_tests(tmp_path)


def test_a_checkout_has_its_kernel_tests():
    folder = kernel_tests()
    assert folder is not None and (folder / "test_attend.py").exists()


def test_ours_agrees_with_the_reference():
    found = check_agreement(SETTINGS, ["blocked"])
    assert 0 < found["blocked"] < 1e-5


@pytest.mark.parametrize("broken", ["entropy", "received", "mass", "output"])
def test_one_that_disagrees_is_refused(broken, monkeypatch):
    """An implementation of which one number is wrong by a thousandth."""

    def attend(*tensors, **options):
        output, found = blocked.attend(*tensors, **options)
        if broken == "output":
            return output + 1e-3, found
        getattr(found, broken).view(-1)[-1] += 1e-3
        return output, found

    module = ModuleType("broken")
    vars(module)["attend"] = attend
    monkeypatch.setitem(sys.modules, "broken", module)
    monkeypatch.setitem(door.IMPLEMENTATIONS, "broken", "broken")
    with pytest.raises(ProbeError, match=f"broken disagrees with the reference: {broken} by 0.00"):
        check_agreement(SETTINGS, ["blocked", "broken"])


def test_a_number_where_there_should_be_none_is_a_difference():
    nothing, number = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])
    infinite = torch.tensor([1.0, -torch.inf])
    assert difference(infinite, infinite) == 0
    assert not difference(nothing, number) <= 1 and not difference(number, nothing) <= 1
    assert difference(torch.tensor([3.0]), torch.tensor([1.0])) == 1
