"""Which weights did a run use? Their SHA-256 answers, whatever the folder is called.

The hash of one weight file is its own SHA-256, as sha256sum prints it. Several shards give the SHA-256 over their
hashes in the order of their names. The embedded model and GGUF files give the hash of the GGUF file. A model that no
file stands behind, such as one made in a notebook, gives a hash over its parameters.

Hashing reads whole files, which takes seconds for large ones, so the cache folder remembers the hash of a large file
beside its path, size and time of change. Files in the hub's cache are named by their hash and are not read at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from probe.errors import ProbeError
from probe.loading import hub
from probe.loading.embedded import cache_folder, sha256_of
from probe.loading.sources import Source
from probe.loading.weight_files import folder_weights
from probe.saving.atomic import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMEMBER_ABOVE = 1 << 24  # bytes: smaller files hash faster than the memory of hashes loads


def weights_hash(hf: PreTrainedModel, source: Source | None) -> str:
    """Return the SHA-256 of a model's weights in hex: of the files behind `source`, else of the parameters."""
    return parameters_hash(hf) if source is None else files_hash(source)


def parameters_hash(hf: PreTrainedModel) -> str:
    """Return the SHA-256 in hex over the names, types, shapes and values of a model's parameters."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(hf.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def files_hash(source: Source) -> str:
    """Return the SHA-256 in hex of the source's weight files.

    Raises ProbeError for a hub model that was not downloaded yet.
    """
    if source.kind == "hub":
        config = hub.cached_file(source.model, "config.json", revision=source.revision)
        if config is None:
            raise ProbeError(f"the weights of {source.model} are not in the local cache yet: load the model first")
        files = folder_weights(config.parent)
    else:
        files = folder_weights(source.on_disk) if source.kind == "folder" else [source.on_disk]
    hashes = [_file_hash(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's contents; large files are remembered by path, size and time of change."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name  # the hub's cache names a large file by its SHA-256
    state = blob.stat()
    if state.st_size < _REMEMBER_ABOVE:
        return sha256_of(blob)
    memory = cache_folder() / "hashes.json"
    key = f"{blob}|{state.st_size}|{state.st_mtime_ns}"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):  # a missing or torn memory costs time, never a wrong answer
        known = json.loads(memory.read_text(encoding="utf-8"))
    if key not in known:
        known = {old: value for old, value in known.items() if not old.startswith(f"{blob}|")}
        known[key] = sha256_of(blob)
        with suppress(OSError):  # a cache that cannot be written to is not an error of this call
            write_text(memory, json.dumps(known, indent=1))
    return known[key]
