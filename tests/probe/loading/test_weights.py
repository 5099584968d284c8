from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from probe.errors import ProbeError, UsageError
from probe.loading import hashes
from probe.loading.hashes import files_hash
from probe.loading.sources import Source, resolve
from probe.loading.weights import load_weights
from tests.probe.loading.checkpoints import unshard

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "probe-cache"))


def load(folder: Path, **options):
    return load_weights(resolve(str(folder)), device="cpu", **options)


# --- loading


def test_a_pickle_is_refused_and_never_opened(checkpoint):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (checkpoint / "sprung",))

    unshard(checkpoint).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ProbeError, match="only pickled weights"):
        load(checkpoint)
    source = Source(name="x", kind="folder", model=str(checkpoint), path=checkpoint)
    with pytest.raises(ProbeError):  # nor does loading fall back to it when asked without resolve
        load_weights(source, device="cpu")
    assert not (checkpoint / "sprung").exists()


def test_a_folder_loads_as_it_was_saved(tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    saved = {}
    for shard in tiny_checkpoint.glob("*.safetensors"):
        saved |= load_file(shard)
    assert saved.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)
    assert not model.training and model.dtype == torch.float32 and model.device.type == "cpu"
    assert tokenizer.tokenize("a the") == ["a", "Ġthe"]


def test_dtypes(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert load(checkpoint)[0].dtype == torch.float32  # a CPU's default
    assert load(checkpoint, dtype="auto")[0].dtype == torch.bfloat16
    assert load(checkpoint, dtype="float16")[0].dtype == torch.float16
    assert load(checkpoint, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float31", "int8", torch.int64, "Tensor"])
def test_a_dtype_that_cannot_be(tiny_checkpoint, dtype):
    with pytest.raises(UsageError, match="dtype must be float32, bfloat16"):
        load(tiny_checkpoint, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu0", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(tiny_checkpoint, device):
    with pytest.raises(ProbeError, match=f"this machine has no device {device}: name one that it has"):
        load_weights(resolve(str(tiny_checkpoint)), device=device)


def test_a_device_map(tiny_checkpoint):
    on_map, placed = load_weights(resolve(str(tiny_checkpoint)), device_map={"": "cpu"})[0], load(tiny_checkpoint)[0]
    with torch.no_grad():
        torch.testing.assert_close(on_map(IDS).logits, placed(IDS).logits, rtol=0, atol=0)
    with pytest.raises(UsageError, match="device and device_map were both given"):
        load(tiny_checkpoint, device_map="auto")


def test_gguf(gguf_writer, tmp_path):
    tensors = gguf_writer(tmp_path / "tiny.gguf")
    model, _ = load_weights(resolve(str(tmp_path / "tiny.gguf")), device="cpu")
    assert not model.training and model.dtype == torch.float32
    found = model.get_input_embeddings().weight
    torch.testing.assert_close(found.data, torch.from_numpy(tensors["token_embd.weight"]), rtol=0, atol=0)


def test_a_vision_language_model(tiny_checkpoint, tmp_path):
    from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig.from_pretrained(tiny_checkpoint)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "vl")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "vl")
    model, _ = load(tmp_path / "vl")
    assert type(model) is LlavaForConditionalGeneration
    with torch.no_grad():
        assert model(IDS).logits.isfinite().all()


# --- checkpoints that are not what they seem


def test_weights_that_are_not_there_are_not_made_up(checkpoint):
    file = unshard(checkpoint)
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ProbeError, match=r"lacks 1 of the weights of LlamaForCausalLM, such as model.layers.1.self_attn.k"
    ):
        load(checkpoint)


def test_weights_of_another_shape(checkpoint):
    file = unshard(checkpoint)
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ProbeError, match="cannot be loaded"):
        load(checkpoint)


@pytest.mark.parametrize("cut", [4, 600, -100])
def test_weights_cut_short(checkpoint, cut):
    file = unshard(checkpoint)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ProbeError, match=r"the weights of .*copy are damaged: fetch them again"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be loaded: .*not a valid JSON"),
        ("{}", "cannot be loaded: .*model_type"),
        ('{"model_type": "nonesuch"}', "cannot be loaded: .*nonesuch"),
        ('{"model_type": "t5", "d_model": 8}', "copy is neither a causal nor a vision-language model"),
        (
            '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}',
            "brings code of its own: read it, then pass trust_remote_code=True",
        ),
    ],
    ids=["torn", "empty", "unknown", "seq2seq", "own code"],
)
def test_configurations_that_make_no_model(checkpoint, config, message):
    (checkpoint / "config.json").write_text(config)
    (checkpoint / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ProbeError, match=message) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


def test_code_of_its_own_runs_when_trusted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = json.loads((checkpoint / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (checkpoint / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = Own\n"
    )
    model, _ = load(checkpoint, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"


def test_a_checkpoint_without_a_tokenizer(checkpoint):
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ProbeError, match=r"copy cannot be loaded: .*tokenizer") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


# --- quiet, and polite about it


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_stays_changed(tiny_checkpoint):
    script = (
        "import sys; from probe.loading.sources import resolve; from probe.loading.weights import load_weights\n"
        "from transformers.utils import logging\n"
        "import huggingface_hub.utils as hub\n"
        "logging.set_verbosity_info(); before = logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()\n"
        "load_weights(resolve(sys.argv[1]), device='cpu')\n"
        "assert logging.get_verbosity() == logging.INFO and before == (True, False)\n"
        "assert (logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()) == before\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_come_back_after_an_error(checkpoint):
    from transformers.utils import logging as quiet

    before = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ProbeError):
        load(checkpoint)
    assert (quiet.get_verbosity(), quiet.is_progress_bar_enabled()) == before
    assert logging.getLogger().level == logging.WARNING


# --- the hub


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_model_of_the_hub(fake_hub, tiny_checkpoint, monkeypatch, revision):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    source = resolve("org/tiny", revision=revision)
    with pytest.raises(ProbeError, match="load the model first"):
        files_hash(source)
    model, _ = load_weights(source, device="cpu")
    with torch.no_grad():
        expected = load(tiny_checkpoint)[0](IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    assert files_hash(source) == files_hash(resolve(str(tiny_checkpoint)))

    def unread(path: Path) -> str:
        raise AssertionError(f"{path} was read, though its name is its hash")

    monkeypatch.setattr(hashes, "sha256_of", unread)
    files_hash(source)

    fake_hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again, _ = load_weights(resolve("org/tiny", revision=revision), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=0)
    assert fake_hub.requests == []


def test_a_cached_model_loads_without_a_request_when_the_hub_is_down(fake_hub, tiny_checkpoint):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    load_weights(resolve("org/tiny"), device="cpu")
    fake_hub.status = 503
    source = resolve("org/tiny")
    fake_hub.requests.clear()
    load_weights(source, device="cpu")
    assert fake_hub.requests == [] and not source.reached  # each request would be tried again for half a minute


def test_a_model_that_becomes_gated_while_it_loads(fake_hub, tiny_checkpoint):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    source = resolve("org/tiny")
    fake_hub.gated.add("org/tiny")
    with pytest.raises(ProbeError, match="org/tiny is gated: accept its terms"):
        load_weights(source, device="cpu")
