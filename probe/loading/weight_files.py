"""Which files of a checkpoint hold its weights?

Weights are read from safetensors alone (GGUF files are named by the user one by one): unpickling a downloaded file runs
whatever code its author put there. A checkpoint keeps its weights in `model.safetensors`, or in numbered shards and an
index that lists them. This module reads file names and the index, and opens no weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from probe.errors import ProbeError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def weight_names(model: str, names: Collection[str]) -> list[str]:
    """Return those of a checkpoint's file names that hold its weights.

    As in transformers, `model.safetensors` goes before shards. Raises ProbeError if the weights are in no safe format.
    """
    if _SINGLE in names:
        return [_SINGLE]
    if found := sorted(name for name in names if _SHARD.fullmatch(name)):
        return found
    if _INDEX in names:
        return sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        raise ProbeError(f"{model} holds GGUF files: give the path of one of them, such as {gguf[0]}")
    if pickles := sorted(name for name in names if name.endswith(_PICKLES) and "training" not in name):
        raise ProbeError(
            f"{model} has only pickled weights ({pickles[0]}), which can run any code: "
            "convert them to model.safetensors with save_pretrained in a process that you trust"
        )
    raise ProbeError(f"{model} has no weights: a checkpoint has model.safetensors beside its config.json")


def folder_weights(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint folder. Raises ProbeError if they are pickled or one is missing."""
    names = {path.name for path in folder.iterdir()}
    parts = weight_names(str(folder), names)
    if parts == [_SINGLE]:
        return [folder / _SINGLE]
    if _INDEX not in names:
        raise ProbeError(f"{folder} lacks {_INDEX}, which says what is in {parts[0]}: fetch the whole checkpoint")
    try:
        parts = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError) as error:
        raise ProbeError(f"{folder / _INDEX} is damaged: fetch it again") from error
    if missing := [name for name in parts if name not in names]:
        raise ProbeError(f"{folder} lacks {missing[0]}, which {_INDEX} names: fetch the whole checkpoint")
    return [folder / name for name in parts]
