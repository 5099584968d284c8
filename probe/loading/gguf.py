"""How is a GGUF file read? Its header by this module, its weights by transformers, which dequantises them to floats.

GGUF is llama.cpp's format: one file with the architecture, the vocabulary and the (often quantised) weights. The header
begins with the `general.` keys, which are enough to name the architecture and the licence before anything is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from probe.errors import ProbeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Value types of the format's key-value section, by number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def is_gguf(path: Path) -> bool:
    """Return whether the file begins with the four bytes of a GGUF file."""
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def general(path: Path) -> dict[str, str]:
    """Return the textual `general.` keys of a GGUF file, without that prefix: architecture, name, license and others.

    Reading stops after those keys, which come first, because parsing the vocabulary behind them takes seconds. Raises
    ProbeError for a file that is not GGUF version 2 or 3, or is cut short.
    """
    found: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            magic, version, _, keys = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ProbeError(f"{path} is no GGUF file of version 2 or 3: convert the model again")
            for _ in range(keys):
                key = _text(file)
                if not key.startswith("general."):
                    break
                value = _value(file, _number(file, "I"))
                if isinstance(value, str):
                    found[key.removeprefix("general.")] = value
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise ProbeError(f"the GGUF file {path} is cut short or damaged: fetch it again") from error
    return found


def read_gguf(
    path: Path, *, dtype: torch.dtype | str = "auto", device_map: str | dict | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a GGUF file as a dequantised transformers model, and its tokenizer.

    The model remembers that it came from GGUF and therefore refuses `save_pretrained`. Raises ProbeError for an
    architecture that transformers does not read, and for a damaged file.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    architecture = general(path).get("architecture", "unknown")
    folder, name = str(path.parent), path.name
    try:
        with _bar_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, device_map=device_map)
    except (ValueError, IndexError, KeyError, NotImplementedError, struct.error) as error:  # what torn files raise
        reason = " ".join(str(error).split())[:200]
        if "not supported" in reason or isinstance(error, NotImplementedError):
            raise ProbeError(
                f"transformers {transformers.__version__} cannot read GGUF files of architecture {architecture!r} "
                f"({path.name}): use the safetensors checkpoint of that model"
            ) from error
        raise ProbeError(f"the GGUF file {path} cannot be read: fetch it again ({reason})") from error
    return model, tokenizer


@contextmanager
def _bar_on_terminals_only() -> Iterator[None]:
    """Show transformers' progress bar of GGUF files on a terminal only; its settings do not reach this bar."""
    from transformers import modeling_gguf_pytorch_utils

    reading: Any = modeling_gguf_pytorch_utils
    bar = getattr(reading, "tqdm", None)
    if bar is not None:
        reading.tqdm = partial(bar, disable=None)  # None is tqdm's word for "off unless on a terminal"
    try:
        yield
    finally:
        if bar is not None:
            reading.tqdm = bar


def _number(file: BinaryIO, code: str) -> int:
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def _text(file: BinaryIO) -> str:
    length = _number(file, "Q")
    text = file.read(length) if length < 1 << 24 else b""
    if len(text) != length:
        raise struct.error("a string runs past the end of the file")
    return text.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        item = _number(file, "I")
        return [_value(file, item) for _ in range(_number(file, "Q"))]
    return _number(file, _SCALARS[kind])
