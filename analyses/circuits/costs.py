"""The cost of a run before it is run: layers that read tokens, at the speed measured now, and bytes by shapes.

A run of n tokens through one layer is n token-layers. Path patching to the logits runs END alone, from each head's
layer on; paths into values and keys run the columns from the first in which the prompts differ, for heads before the
receivers and again behind them, which are taken to stand at two thirds of the depth. Runs with edges cut, and gradients
of edges, take several times a plain pass: the factors are those of the packaged model. Expect the right order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.edges.wiring import Wiring
from probe.frame.analysis import Cost
from probe.frame.speed import operations
from probe.patching.runs import TOKENS, first_difference
from probe.saving.manifest import peak_memory

if TYPE_CHECKING:
    from probe.analyses.circuits.edges import settings as edge_settings
    from probe.analyses.circuits.repair import settings as repair_settings
    from probe.analyses.circuits.search import settings as search_settings
    from probe.frame.speed import Speed
    from probe.models import Model
    from probe.patching.pairs import Pairs

DEPTH = 2 / 3
GRADIENT, CUT = 8.0, 3.0
"""Passes of the model that a gradient of all edges is worth, and a run with edges cut."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds per pass over all pairs, bytes that a run holds, and the plain seconds of reading both sides once."""

    seconds: float
    memory: int
    plain: float

    @classmethod
    def of(cls, model: Model, speed: Speed, pairs: Pairs, *, batch: int, more: int = 0) -> Reading:
        length, hidden = pairs.clean.shape[1], model.hf.config.get_text_config().hidden_size
        seconds = len(pairs) * operations(model, length) * speed.per_operation
        # both sides of a batch: stream, MLP, operands, z and cache of every layer; and what runs at once
        held = 4 * model.n_layers * (2 * 8 * batch * length + 2 * TOKENS) * hidden
        return cls(seconds, peak_memory() + held + more, 2 * seconds)

    def cost(self, parts: dict[str, float]) -> Cost:
        """Return the cost of passes, given by what they are spent on."""
        seconds = {part: passes * self.seconds for part, passes in parts.items() if passes}
        return Cost(sum(seconds.values()), self.memory, self.plain, tuple(seconds.items()))


def search(model: Model, speed: Speed, settings: search_settings.Settings, pairs: Pairs) -> Cost:
    """Return the cost of a search with these pairs."""
    heads, layers, tokens = model.n_heads, model.n_layers, pairs.clean.shape[1]
    columns = tokens - first_difference(pairs)
    # from a head's layer to the end, halfway through on average; into receivers, up to their layer and from there on
    logits = heads * layers / 2 / tokens
    through = heads * layers * DEPTH * (DEPTH / 2 + 1 - DEPTH)
    into = sum(through * width / tokens for width in (1, columns, columns)[: settings.stages - 1])
    tests = 0 if settings.no_tests else 3 + 3 * settings.draws + 2 * settings.stages + settings.keep
    parts = {"behaviour and attention": 2, "paths": 2 * settings.stages + logits + into, "knock-outs": tests}
    return Reading.of(model, speed, pairs, batch=settings.batch_size).cost(parts)


def edges(model: Model, speed: Speed, settings: edge_settings.Settings, pairs: Pairs) -> Cost:
    """Return the cost of scoring edges with these pairs, half of which give the scores."""
    gradients = settings.steps if settings.method == "eap-ig" else 1
    curves = len(settings.percents) * (2 + settings.draws)
    held = len(Wiring(model).graph.senders) * pairs.clean.shape[1] * settings.batch_size
    held *= 4 * model.hf.config.get_text_config().hidden_size
    parts = {"scores": (2 + GRADIENT * gradients) / 2, "exact effects": settings.exact / 2 * CUT / 4}
    parts["curves"] = (2 + CUT * curves) / 2
    return Reading.of(model, speed, pairs, batch=settings.batch_size, more=3 * held).cost(parts)


def repairing(model: Model, speed: Speed, settings: repair_settings.Settings, pairs: Pairs) -> Cost:
    """Return the cost of the forced conditions with these pairs of the target."""
    return Reading.of(model, speed, pairs, batch=settings.batch_size).cost({"conditions": 3 + 2 * settings.draws})


def together(costs: Sequence[tuple[str, Cost]]) -> Cost:
    """Return the cost of runs one after another, with a part for each."""
    return Cost(
        sum(each.seconds for _, each in costs),
        max(each.memory for _, each in costs),
        sum(each.plain for _, each in costs),
        tuple((name, each.seconds) for name, each in costs),
    )
