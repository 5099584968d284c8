"""What tests of checkpoints do to files: hash them, and merge shards into one file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unshard(folder: Path) -> Path:
    """Merges the weights of a checkpoint into one file, whose path it returns."""
    merged = {}
    for shard in folder.glob("model-*.safetensors"):
        merged |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"
