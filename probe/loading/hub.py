"""What is a model id on the Hugging Face hub? One request answers, or the local cache where there is no network.

`find` pins a model id and a revision to a commit and lists its files, so that a run can say exactly what it loaded. A
failure comes out as a ProbeError that tells the four causes apart: there is no such model, there is no such revision,
the model is gated, or neither the network nor the cache has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probe.errors import ProbeError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_SECONDS = 10  # patience with the one request that decides whether there is a network


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub at one commit is described by its files (name to bytes, where known) and its licence.

    reached: False if there was no network, so that all of this comes from the local cache.
    """

    model: str
    commit: str
    files: dict[str, int]
    licence: str | None
    reached: bool


def is_model_id(name: str) -> bool:
    """Return whether the text can be the id of a model on the hub: `name` or `owner/name`."""
    return re.fullmatch(r"(?:[\w.-]+/)?\w[\w.-]{0,95}", name, flags=re.ASCII) is not None and ".." not in name


def find(model: str, *, revision: str | None = None) -> HubModel:
    """Return what `model` is at `revision` (a branch, tag or commit; None is the default branch), pinned to a commit.

    This makes one request without retries. Without a network, or with HF_HUB_OFFLINE set, the local cache answers.
    Raises ProbeError with the cause: no such model, no such revision, gated, or neither network nor cached copy.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = HfApi()
    try:
        info = hub.model_info(model, revision=revision, timeout=_SECONDS, files_metadata=True)
        if info.gated:
            hub.auth_check(model)
    except GatedRepoError as error:
        raise ProbeError(gated(model)) from error
    except RevisionNotFoundError as error:
        raise ProbeError(f"{model} has no revision {revision!r} on the hub: name a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise ProbeError(
            f"the hub has no model {model!r} that you may see: check the spelling, or set HF_TOKEN if it is private"
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, _transport_error(), OSError) as error:
        if known := cached(model, revision=revision):
            return known
        at = f" at revision {revision!r}" if revision else ""
        if isinstance(error, OfflineModeIsEnabled):
            raise ProbeError(
                f"{model!r}{at} is not in the local cache and HF_HUB_OFFLINE is set: unset it to download"
            ) from error
        why = "the hub answered with an error" if isinstance(error, HfHubHTTPError) else "the hub cannot be reached"
        raise ProbeError(f"{model!r}{at} is not in the local cache and {why}: {_line(error)}") from error
    return _described(info)


def cached(model: str, *, revision: str | None = None) -> HubModel | None:
    """Return what the local cache has of `model`, or None."""
    config = cached_file(model, "config.json", revision=revision)
    if config is None:
        return None
    folder = config.parent
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return HubModel(model=model, commit=folder.name, files=files, licence=card_licence(folder), reached=False)


def cached_file(model: str, name: str, *, revision: str | None = None) -> Path | None:
    """Return the path of a file in the local cache, or None where it was not downloaded."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def keep_name(model: str, *, revision: str | None = None) -> None:
    """Note in the local cache which commit `revision` stands for, by downloading config.json under that name.

    Files that are fetched by commit alone leave the cache without names, and without a network it could not say which
    commit `main` is.
    """
    from huggingface_hub import hf_hub_download

    hf_hub_download(model, "config.json", revision=revision)


def card_licence(folder: Path) -> str | None:
    """Return the licence that the model card (README.md) in the folder declares, or None."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card, flags=re.DOTALL)
    stated = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], flags=re.MULTILINE) if front else None
    return stated[1] if stated else None


def gated(model: str) -> str:
    """Return the line that tells how to get access to a gated model."""
    return (
        f"{model} is gated: accept its terms at https://huggingface.co/{model}, "
        "then set HF_TOKEN to a token of that account"
    )


def _described(info: ModelInfo) -> HubModel:
    return HubModel(
        model=info.id,
        commit=info.sha or "",
        files={file.rfilename: file.size or 0 for file in info.siblings or ()},
        licence=info.card_data.get("license") if info.card_data is not None else None,
        reached=True,
    )


def _transport_error() -> type[Exception]:
    """Return the base class of the errors of huggingface_hub's HTTP library, which differs between its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
