"""How is a pattern of attention edited without its map? Every head keeps a list of edits, which the kernels apply.

A pattern is the weights p_ij of one attention call. Interventions look at statistics of the pattern as it stands and
add edits to heads (`probe.kernels.edits`). Heads with the same edits run together, through an implementation that
carries edits; heads without edits run through whichever is fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from probe.interventions.call import AttentionCall
from probe.kernels.attend import attend
from probe.kernels.contract import Request, Statistics
from probe.kernels.edits import Edit, of_heads


class Pattern:
    """The weights of one attention call, which can be looked at and edited head by head, and are never built."""

    def __init__(self, call: AttentionCall, implementation: str = "auto") -> None:
        self.call = call
        self._implementation = implementation
        self._edits: dict[int, list[tuple[Edit, int]]] = {}  # by head: the edit, and the head's place in it

    def edit(self, heads: Sequence[int], edit: Edit) -> None:
        """Edit these heads after their earlier edits; the edit's head dimension is `heads`, or 1."""
        for place, head in enumerate(heads):
            self._edits.setdefault(head, []).append((edit, place))

    @property
    def edited(self) -> list[int]:
        """Return the heads that were edited."""
        return sorted(self._edits)

    @torch.no_grad()
    def look(self, heads: Sequence[int], request: Request) -> Statistics:
        """Return statistics of these heads as they stand, [batch, len(heads), ...]; key sets have the same heads."""
        return self.attend(heads, request)[1]

    def attend(self, heads: Sequence[int], request: Request) -> tuple[Tensor, Statistics]:
        """Return output [batch, len(heads), queries, value_dim] and statistics of these heads as they stand."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, head in enumerate(heads):
            alike.setdefault(tuple(id(edit) for edit, _ in self._edits.get(head, ())), []).append(place)
        parts = [self._of(heads, places, request) for places in alike.values()]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([place for places in alike.values() for place in places]).argsort().tolist()
        outputs, statistics = zip(*parts, strict=True)
        return torch.cat(outputs, 1)[:, order], _joined(lambda *all_of: torch.cat(all_of, 1)[:, order], *statistics)

    def whole(self, request: Request) -> tuple[Tensor, Statistics]:
        """Return output and statistics of all heads."""
        edited, every = self.edited, range(self.call.query.shape[1])
        if len(edited) == len(every):
            return self.attend(every, request)
        output, statistics = self._run(list(every), request, ())
        if not edited:
            return output, statistics
        part = replace(request, sets=None if request.sets is None else of_heads(request.sets, edited))
        own, own_statistics = self.attend(edited, part)

        def placed(all_heads: Tensor, some: Tensor) -> Tensor:
            return all_heads.index_copy(1, torch.tensor(edited, device=all_heads.device), some.to(all_heads.dtype))

        return placed(output, own), _joined(placed, statistics, own_statistics)

    def _of(self, heads: Sequence[int], places: list[int], request: Request) -> tuple[Tensor, Statistics]:
        """Return output and statistics of the heads at these places, which all have the same edits."""
        some = [heads[place] for place in places]
        if request.sets is not None:
            request = replace(request, sets=of_heads(request.sets, places))
        edits = [self._edits.get(head, []) for head in some]
        own = tuple(edit.of_heads([of[n][1] for of in edits]) for n, (edit, _) in enumerate(edits[0]))
        return self._run(some, request, own)

    def _run(self, heads: list[int], request: Request, edits: tuple[Edit, ...]) -> tuple[Tensor, Statistics]:
        call = self.call
        query, key, value, sinks, mask = call.query, call.key, call.value, call.sinks, call.mask
        if heads != list(range(query.shape[1])):
            group = query.shape[1] // key.shape[1]
            read = [head // group for head in heads]
            query, key, value = query[:, heads], key[:, read], value[:, read]
            sinks = None if sinks is None else sinks[heads]
            mask = mask if mask.pairs is None else replace(mask, pairs=of_heads(mask.pairs, heads))
        implementation = self._implementation
        if edits and implementation != "reference":
            implementation = "auto"  # beside the reference, one implementation edits
        return attend(
            query,
            key,
            value,
            mask=mask,
            scale=call.scale,
            softcap=call.softcap,
            sinks=sinks,
            request=request,
            edits=edits,
            implementation=implementation,
        )


def _joined(join: Callable[..., Tensor], *statistics: Statistics) -> Statistics:
    """Return statistics put together along their heads; `received_rows` has no heads."""
    found = {}
    for field in fields(Statistics):
        values = [getattr(each, field.name) for each in statistics]
        if values[0] is not None:
            found[field.name] = values[0] if field.name == "received_rows" else join(*values)
    return Statistics(**found)
