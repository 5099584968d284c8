"""How can one attention map be drawn exactly when no map was kept? From q, k and lse, which take O(tokens) of memory.

The weight of query i on key j is p_ij = exp(s_ij - lse_i), where s_ij is the scaled score of q_i and k_j, and lse_i the
log of the sum of exp(s_ij) over the keys. A capture keeps q, k and lse of every layer of one sequence, in memory or in
a folder with one safetensors file for each layer. Any tile of any head's map can then be computed exactly, and a whole
map is drawn from maxima over tiles (`pooled`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probe.errors import ProbeError, UsageError
from probe.heads import Head
from probe.interventions.call import AttentionCall
from probe.kernels.attend import pool, tile
from probe.kernels.contract import Mask, Request, Statistics

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class LayerCapture:
    """One layer's operands are query [heads, queries, head_dim], key [kv_heads, keys, head_dim], lse [heads, queries].

    scale, softcap, causal and window are those of the attention call. pairs: [queries, keys] bool, only where the mask
    is neither causal nor a window.
    """

    query: Tensor
    key: Tensor
    lse: Tensor
    scale: float
    softcap: float | None
    causal: bool
    window: int | None
    pairs: Tensor | None

    @property
    def mask(self) -> Mask:
        """Return the mask of the call, for a batch of one."""
        pairs = None if self.pairs is None else self.pairs[None, None]
        return Mask(causal=self.causal, window=self.window, pairs=pairs)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Capture(Mapping[int, LayerCapture]):
    """A capture maps each layer to the LayerCapture of one sequence, from memory or (memory-mapped) from its folder.

    ids: [tokens] int64. strings: the tokens as text. model: the name of the model that ran. layers: each layer, or the
    file that holds it.
    """

    model: str
    ids: Tensor
    strings: tuple[str, ...]
    layers: Mapping[int, LayerCapture | Path]
    folder: Path | None = None

    def __getitem__(self, layer: int) -> LayerCapture:
        if layer not in self.layers:
            raise UsageError(f"layer {layer} was not captured: choose from {_ranges(self.layers)}")
        found = self.layers[layer]
        return _read_layer(found) if isinstance(found, Path) else found

    def __iter__(self):
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else str(self.folder)
        return f"Capture({self.model}, {len(self.ids)} tokens, layers {_ranges(self.layers)}, {where})"

    def save(self, folder: Path | str) -> Path:
        """Write one safetensors file for each layer and then `capture.json`, whose presence marks a whole capture."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for layer in self:
            _write_layer(_file(folder, layer), self[layer])
        _write_index(folder, self)
        return folder

    @classmethod
    def open(cls, folder: Path | str) -> Capture:
        """Return a saved capture. Only its index is read until a layer is asked for."""
        folder = Path(folder)
        try:
            index = json.loads((folder / "capture.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ProbeError(f"{folder} holds no capture: give a folder that Capture.save wrote") from error
        if index["schema"] != SCHEMA:
            raise ProbeError(
                f"{folder} has capture schema {index['schema']} and this version reads {SCHEMA}: capture again"
            )
        return cls(
            model=index["model"],
            ids=torch.tensor(index["ids"]),
            strings=tuple(index["strings"]),
            layers={layer: _file(folder, layer) for layer in index["layers"]},
            folder=folder,
        )

    def tile(self, head: Head | tuple[int, int], rows: range | slice, cols: range | slice) -> Tensor:
        """Return the exact attention weights [rows, cols] of one head for a rectangle of query and key positions."""
        layer, query, lse, key = self._head(head)
        rows, cols = _range(rows, query.shape[2], "rows"), _range(cols, key.shape[2], "cols")
        weights = tile(query, key, lse, rows=rows, cols=cols, mask=layer.mask, scale=layer.scale, softcap=layer.softcap)
        return weights[0, 0]

    def pooled(self, head: Head | tuple[int, int], *, size: int = 512) -> Tensor:
        """Return the head's whole map, max-pooled to at most [size, size]."""
        layer, query, lse, key = self._head(head)
        maps = pool(query, key, lse, shape=(size, size), mask=layer.mask, scale=layer.scale, softcap=layer.softcap)
        return maps[0, 0]

    def _head(self, given: Head | tuple[int, int]) -> tuple[LayerCapture, Tensor, Tensor, Tensor]:
        head = Head(*given)
        layer = self[head.layer]
        heads, kv_heads = layer.query.shape[0], layer.key.shape[0]
        if not 0 <= head.head < heads:
            raise UsageError(f"{head} does not exist: name one of the layer's heads 0..{heads - 1}")
        group = head.head // (heads // kv_heads)
        query, lse = layer.query[None, head.head, None], layer.lse[None, head.head, None]
        return layer, query, lse, layer.key[None, group, None]


class Capturing:
    """An observer that takes a capture. With a folder, each layer goes to disk as it passes."""

    def __init__(self, *, layers: Sequence[int], folder: Path | None) -> None:
        self._wanted = frozenset(layers)
        self._folder = folder
        self._layers: dict[int, LayerCapture | Path] = {}

    def request(self, call: AttentionCall) -> Request | None:
        """Request the lse of the layers to capture."""
        return Request(lse=True) if call.layer in self._wanted else None

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        """Keep the operands of the call. Raises ProbeError if an intervention edits the pattern."""
        assert statistics.lse is not None
        if call.edited:
            raise ProbeError(
                "a capture keeps q, k and lse, from which an edited pattern cannot be drawn again: capture without "
                "interventions on the pattern"
            )
        pairs = call.mask.pairs
        captured = LayerCapture(
            query=call.query[0].detach().cpu().contiguous(),
            key=call.key[0].detach().cpu().contiguous(),
            lse=statistics.lse[0].cpu(),
            scale=call.scale,
            softcap=call.softcap,
            causal=call.mask.causal,
            window=call.mask.window,
            pairs=None if pairs is None else pairs[0, 0].cpu(),
        )
        self._layers[call.layer] = (
            captured if self._folder is None else _write_layer(_file(self._folder, call.layer), captured)
        )

    def finish(self, *, model: str, ids: Tensor, strings: Sequence[str]) -> Capture:
        """Return the capture, after the forward pass."""
        layers = dict(sorted(self._layers.items()))
        capture = Capture(model=model, ids=ids, strings=tuple(strings), layers=layers, folder=self._folder)
        if self._folder is not None:
            _write_index(self._folder, capture)
        return capture


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer_{layer:03d}.safetensors"


def _write_layer(path: Path, layer: LayerCapture) -> Path:
    tensors = {"query": layer.query, "key": layer.key, "lse": layer.lse}
    if layer.pairs is not None:
        tensors["pairs"] = layer.pairs.contiguous()
    facts = {name: getattr(layer, name) for name in ("scale", "softcap", "causal", "window")}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"layer": json.dumps(facts)})
    return partial.replace(path)


def _read_layer(path: Path) -> LayerCapture:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            facts = json.loads(file.metadata()["layer"])
    except (FileNotFoundError, SafetensorError) as error:
        raise ProbeError(f"{path} is missing or damaged: take the capture again") from error
    return LayerCapture(pairs=tensors.pop("pairs", None), **tensors, **facts)


def _write_index(folder: Path, capture: Capture) -> None:
    index = {
        "schema": SCHEMA,
        "model": capture.model,
        "ids": capture.ids.tolist(),
        "strings": capture.strings,
        "layers": list(capture),
    }
    partial = folder / "capture.json.partial"
    partial.write_text(json.dumps(index), encoding="utf-8")
    partial.replace(folder / "capture.json")


def _range(given: range | slice, length: int, name: str) -> range:
    """Return a contiguous range of positions. A slice may reach beyond the end, as in Python; a range may not."""
    if isinstance(given, slice):
        given = range(*given.indices(length))
    if given.step != 1 or not 0 <= given.start < given.stop <= length:
        raise UsageError(f"{name} must be a contiguous, non-empty range within 0..{length}, got {given}")
    return given


def _ranges(layers: Iterable[int]) -> str:
    """Return layers as text: 0-29, or a list where there are gaps."""
    ordered = sorted(layers)
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(map(str, ordered))
