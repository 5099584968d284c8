"""Which statistics did the attention calls of a run have? A recording collects them over a prompt and its continuation.

A forward pass calls attention once for each layer; a generation calls it again for every new token, with one query. A
`Recording` observes these calls, checks that their queries follow one another, and joins their pieces, so that a cached
generation gives the same `AttentionStats` as one full pass over the whole text. `request_for` turns the names of
statistics into the request that the kernels take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import ProbeError, UsageError
from probe.interventions.call import AttentionCall
from probe.kernels.contract import ROW_STATISTICS, Band, Request, Statistics


@dataclass(frozen=True, kw_only=True)
class AttentionStats(Statistics):
    """The statistics of one sequence or padded batch, stacked over layers; float32, on the CPU, None if not requested.

    The fields are those of `probe.kernels.contract.Statistics`, which defines them, with a dimension of layers in
    front: row statistics are [layers, batch, heads, queries, ...], `received` is [layers, batch, heads, keys], `pooled`
    is [layers, batch, heads, rows, cols]. Column 0 of the queries stands at position `first_query`. Positions count
    padding; `sequence(row)` returns one row of the batch without it.

    layers: the layers that were recorded. sets: names of the key sets, in order. padding: [batch, positions] bool,
    False for padding; None where nothing is padded.
    """

    layers: tuple[int, ...]
    first_query: int
    sets: tuple[str, ...] = ()
    padding: Tensor | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in self.tensors().items())
        return f"AttentionStats({len(self.layers)} layers, from position {self.first_query}: {shapes})"

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics that were requested, by name."""
        names = [field.name for field in fields(Statistics)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def sequence(self, row: int) -> AttentionStats:
        """Return one sequence of the batch without its padding: batch 1, with the positions of a run on its own."""
        count = next(iter(self.tensors().values())).shape[1]
        if not -count <= row < count:
            raise UsageError(f"row must be within {-count}..{count - 1}, the rows of the batch, got {row}")
        row %= count
        alone = {name: value[:, row : row + 1] for name, value in self.tensors().items()}
        if self.padding is None:
            return replace(self, **alone)
        if self.pooled is not None:
            raise UsageError("the pooled map of a padded batch cannot be split: run the sequences one by one")
        real = self.padding[row].nonzero().squeeze(-1)
        start, stop = int(real[0]), int(real[-1]) + 1
        first = max(self.first_query, start)
        for name in alone.keys() & set(ROW_STATISTICS):
            alone[name] = alone[name][:, :, :, first - self.first_query : stop - self.first_query]
        for name in alone.keys() & {"received", "received_rows"}:
            alone[name] = alone[name][..., start:stop]
        if "top_key" in alone:
            keys = alone["top_key"]
            alone["top_key"] = torch.where(keys >= 0, keys - start, keys)
        return replace(self, first_query=first - start, padding=None, **alone)


@dataclass(frozen=True)
class _Piece:
    first_query: int
    queries: int
    first_key: int
    statistics: Statistics
    forgotten_rows: Tensor | None  # [batch, first_key], see _forgotten_rows


class Recording:
    """A recording collects the requested statistics layer by layer, in the order in which the queries come.

    A forward pass followed by cached steps is one recording. A second prompt needs a second recording.
    """

    def __init__(self, request: Request, *, layers: Sequence[int], sets: tuple[str, ...] = ()) -> None:
        self._request = request
        self._sets = sets
        self._pieces: dict[int, list[_Piece]] = {layer: [] for layer in layers}
        self._padding: Tensor | None = None
        # Of each pass, one tensor a statistic for all layers. Small tensors that outlive a layer's large ones would
        # leave holes in memory, many times their own size.
        self._passes: list[dict[str, Tensor]] = []

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers that are recorded."""
        return tuple(self._pieces)

    def request(self, call: AttentionCall) -> Request | None:
        """Return the request for a call of a recorded layer, with the key sets as columns of that call."""
        if call.layer not in self._pieces:
            return None
        if self._request.sets is None:
            return self._request
        return replace(self._request, sets=_columns(self._request.sets, call.mask.first_key, call.key.shape[2]))

    def observe(self, call: AttentionCall, statistics: Statistics) -> None:
        """Keep the statistics of a call. Raises ProbeError if its queries do not follow those recorded so far."""
        pieces = self._pieces[call.layer]
        expected = pieces[-1].first_query + pieces[-1].queries if pieces else call.mask.first_query
        if call.mask.first_query != expected:
            raise ProbeError(
                f"this recording has seen the positions before {expected} and a pass starts at "
                f"{call.mask.first_query}: open one recording for each prompt"
            )
        forgotten = None
        if self._request.received is not None and call.mask.first_key > 0:
            forgotten = _forgotten_rows(self._request.received, call)
        kept = self._keep(call.layer, len(pieces), statistics, positions=call.keys.stop)
        pieces.append(_Piece(call.mask.first_query, call.query.shape[2], call.mask.first_key, kept, forgotten))
        if call.mask.keys is not None and call.mask.first_key == 0:
            self._padding = call.mask.keys

    def _keep(self, layer: int, number: int, statistics: Statistics, *, positions: int) -> Statistics:
        """Return the same numbers, in the memory of their pass where the pass's layers have one shape."""
        if number == len(self._passes):
            self._passes.append({})
        held, index = self._passes[number], list(self._pieces).index(layer)
        kept = {}
        for field in fields(Statistics):
            value = getattr(statistics, field.name)
            if value is None:
                continue
            if value.dtype == torch.int64:  # positions and counts fit in a quarter of the memory, or in half
                value = value.to(torch.int16 if positions < 1 << 15 else torch.int32)
            if field.name not in held:
                held[field.name] = value.new_empty(len(self._pieces), *value.shape)
            place = held[field.name][index]
            kept[field.name] = place.copy_(value) if place.shape == value.shape else value
        return Statistics(**kept)

    def stats(self, *, queries: range | None = None) -> AttentionStats:
        """Return the statistics over all passes; `queries` keeps only the rows at these positions."""
        missing = [layer for layer, pieces in self._pieces.items() if not pieces]
        if missing:
            raise ProbeError(f"no attention call was recorded for layers {missing}: run the model inside the recording")
        first = next(iter(self._pieces.values()))[0].first_query
        rows = slice(None)
        if queries is not None:
            rows = slice(queries.start - first, queries.stop - first)
            first = queries.start
        merged: dict[str, Tensor] = {}
        for field in fields(Statistics):
            layers = [_merge(field.name, pieces) for pieces in self._pieces.values()]
            present = [layer for layer in layers if layer is not None]
            if not present:
                continue
            # layers of one pass lie side by side already
            whole = self._passes[0][field.name]
            side_by_side = all(layer.data_ptr() == own.data_ptr() for layer, own in zip(present, whole, strict=True))
            stacked = whole.cpu() if side_by_side else torch.stack([layer.cpu() for layer in present])
            stacked = stacked if stacked.is_floating_point() else stacked.long()
            merged[field.name] = stacked[:, :, :, rows] if field.name in ROW_STATISTICS else stacked
        padding = None if self._padding is None else self._padding.cpu()
        return AttentionStats(layers=tuple(self._pieces), first_query=first, sets=self._sets, padding=padding, **merged)


def _columns(sets: Tensor, first_key: int, keys: int) -> Tensor:
    """Return key sets by position as columns of a call whose keys start at `first_key`; later keys are in no set."""
    columns = sets[..., first_key : first_key + keys]
    return pad(columns, (0, keys - columns.shape[-1]))


def _forgotten_rows(band: Band, call: AttentionCall) -> Tensor:
    """Return how many of the call's queries the band pairs with each key that left the cache: [batch, first_key].

    Those weights are zero, but the queries count in the mean, as they do in a full pass.
    """
    mask, queries = call.mask, call.query.shape[2]
    i = torch.arange(mask.first_query, mask.first_query + queries, device=call.query.device)[:, None]
    j = torch.arange(mask.first_key, device=call.query.device)[None, :]
    inside = i - j >= band.lo
    if band.hi is not None:
        inside &= i - j <= band.hi
    if band.start is not None:
        inside &= i >= band.start
    if band.stop is not None:
        inside &= i < band.stop
    if mask.keys is None:
        return inside.sum(0).expand(call.query.shape[0], -1)
    real = mask.keys[:, mask.first_query - mask.first_key :][:, :queries]
    return (inside & real[:, :, None]).sum(1)


def _merge(name: str, pieces: list[_Piece]) -> Tensor | None:
    """Return one layer's statistic over all of its pieces."""
    values = [getattr(piece.statistics, name) for piece in pieces]
    if values[0] is None:
        return None
    if len(pieces) == 1 and pieces[0].first_key == 0:
        return values[0]
    if name in ROW_STATISTICS:
        return torch.cat(values, dim=2)
    if name == "pooled":
        raise UsageError("a pooled map describes a single forward pass: leave 'pooled' out of a generation")
    width = max(piece.first_key + value.shape[-1] for piece, value in zip(pieces, values, strict=True))

    def placed(value: Tensor, piece: _Piece) -> Tensor:
        return pad(value, (piece.first_key, width - piece.first_key - value.shape[-1]))

    rows = []
    for piece in pieces:
        rows.append(placed(piece.statistics.received_rows, piece))  # pyright: ignore[reportArgumentType]
        if piece.forgotten_rows is not None:
            rows[-1][..., : piece.first_key] = piece.forgotten_rows
    total = torch.stack(rows).sum(0)
    if name == "received_rows":
        return total
    sums = [
        placed(value, piece).nan_to_num(0.0) * count[:, None]
        for piece, value, count in zip(pieces, values, rows, strict=True)
    ]
    return torch.stack(sums).sum(0) / total[:, None]  # 0 / 0 is NaN: a key that no query of the band saw


def request_for(
    names: Iterable[str] | Request,
    *,
    sets: Mapping[str, Iterable[int]] | None = None,
    length: int,
    queries: range | None = None,
    window: int = 10,
    top: int = 1,
    pooled: int = 512,
) -> tuple[Request, tuple[str, ...]]:
    """Return the kernels' request for statistics by name, and the names of its key sets in order.

    names: any of lse, entropy, distance, windowed_distance, top, mass, partial, received, pooled, or a ready Request.
    sets: positions by name, for mass and partial. length: number of key positions. queries: the rows that `received`
    averages; None is all. window: W of windowed_distance. top: number of top keys. pooled: largest side of pooled maps.
    Raises UsageError for an unknown name, a position outside the text, or mass and partial without sets.
    """
    indicator = None
    if sets is not None:
        indicator = torch.zeros(1, 1, len(sets), length, dtype=torch.bool)
        for index, (name, positions) in enumerate(sets.items()):
            chosen = torch.as_tensor(list(positions), dtype=torch.long)
            if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= length):
                raise UsageError(f"the set {name!r} must lie in positions 0..{length - 1}, got {chosen.tolist()}")
            indicator[0, 0, index, chosen] = True
    if isinstance(names, Request):
        return (names if indicator is None else replace(names, sets=indicator)), tuple(sets or ())
    asked = {names} if isinstance(names, str) else set(names)
    known = {field.name for field in fields(Request)} - {"sets"} | {"mass"}
    if unknown := asked - known:
        raise UsageError(f"unknown statistic {sorted(unknown)[0]!r}: choose from {', '.join(sorted(known))}")
    if asked & {"mass", "partial"} and indicator is None:
        raise UsageError("mass and partial are sums over key sets, and no set was given: pass sets={'name': positions}")
    band = Band() if queries is None else Band(start=queries.start, stop=queries.stop)
    request = Request(
        lse="lse" in asked,
        entropy="entropy" in asked,
        distance="distance" in asked,
        windowed_distance=window if "windowed_distance" in asked else None,
        top=top if "top" in asked else 0,
        sets=indicator,
        partial="partial" in asked,
        received=band if "received" in asked else None,
        pooled=(pooled, pooled) if "pooled" in asked else None,
    )
    return request, tuple(sets or ())
