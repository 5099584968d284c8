"""Tensors inside JSON come back bit for bit."""

import json

import pytest
import torch

from probe.frame.analysis import Prompt
from probe.saving.jsonable import decode, encode
from probe.saving.packed import pack, unpack
from probe.saving.runs import RunFolder

VALUES = [
    torch.tensor([[1.5, float("nan")], [-0.0, float("inf")]]),
    torch.arange(6)[::2],
    torch.tensor([True, False]),
    torch.tensor(2.0, dtype=torch.float64),
    torch.zeros(0, 3),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value.dtype))
def test_a_tensor_comes_back(value):
    text = json.dumps(encode({"a": [value]}, other=pack))
    found = decode(json.loads(text), other=unpack)["a"][0]
    assert found.dtype == value.dtype and found.shape == value.shape
    assert torch.equal(torch.signbit(found), torch.signbit(value))
    torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_packed_is_named():
    with pytest.raises(TypeError, match=r"unit\.weights holds a Tensor"):
        encode({"weights": torch.zeros(1, dtype=torch.bfloat16)}, "unit", other=pack)
    assert decode({"$other": 1}, other=unpack) == {"$other": 1}


def test_records_of_a_run_folder_may_hold_tensors(tmp_path):
    record = {"means": VALUES[0], "n": 2}
    with RunFolder(tmp_path, {}) as folder:
        kept = folder.append("a", record, seconds=1.0, prompts=[Prompt.of(torch.arange(3))])
    with RunFolder(tmp_path, {}) as folder:
        again = folder.records()["a"]
    for found in (kept, again, RunFolder.encoded({"record": record})["record"]):
        assert found["n"] == 2 and torch.equal(found["means"].nan_to_num(7.0), VALUES[0].nan_to_num(7.0))
