"""What a circuit run will cost before it is run: layers to be run for so many tokens, at the speed measured now.

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
from probe.frame.speed import measure, operations
from probe.patching.runs import TOKENS, first_difference
from probe.saving.manifest import peak_memory

if TYPE_CHECKING:
    from probe.analyses.circuits.edges import result as edge_circuits
    from probe.analyses.circuits.repair import result as repair
    from probe.analyses.circuits.search import result as circuits
    from probe.models import Model
    from probe.patching.pairs import Pairs

DEPTH = 2 / 3
GRADIENT, CUT = 8.0, 3.0
"""Passes of the model that a gradient of all edges is worth, and a run with edges cut."""


@dataclass(frozen=True, slots=True)
class CircuitCost:
    """passes: prompts read once by the whole model, in all. seconds: of the run. memory: peak bytes of the process."""

    passes: float
    seconds: float
    memory: int


def search(model: Model, settings: circuits.Settings, pairs: Pairs) -> CircuitCost:
    """Of `circuits.run` with these pairs."""
    heads, layers, tokens = model.n_heads, model.n_layers, pairs.clean.shape[1]
    columns = tokens - first_difference(pairs)
    passes = 2 + 2 * settings.stages
    # from a head's layer to the end, halfway through on average; into receivers, up to their layer and from there on
    passes += heads * layers / 2 / tokens
    through = heads * layers * DEPTH * (DEPTH / 2 + 1 - DEPTH)
    passes += sum(through * width / tokens for width in (1, columns, columns)[: settings.stages - 1])
    if settings.tests:
        passes += 3 + 3 * settings.draws + 2 * settings.stages + settings.top
    return _cost(model, pairs, passes, batch=settings.batch)


def edges(model: Model, settings: edge_circuits.Settings, pairs: Pairs) -> CircuitCost:
    """Of `edge_circuits.run` with these pairs, half of which give the scores."""
    gradients = settings.steps if settings.method == "eap-ig" else 1
    curves = len(settings.percents) * (2 + settings.draws)
    graph = Wiring(model).graph
    held = (
        4 * len(graph.senders) * pairs.clean.shape[1] * settings.batch * model.hf.config.get_text_config().hidden_size
    )
    passes = (2 + GRADIENT * gradients + settings.exact / 2 * CUT / 2 + 2 + CUT * curves) / 2
    return _cost(model, pairs, passes, batch=settings.batch, more=3 * held)


def repairing(model: Model, settings: repair.Settings, pairs: Pairs) -> CircuitCost:
    """Of `repair.run` with these pairs of the target."""
    shown = settings.source_prompts / len(pairs) * (4 + model.n_heads * model.n_layers / 2 / pairs.clean.shape[1])
    return _cost(model, pairs, 3 + 2 * settings.draws + shown, batch=settings.source_prompts)


def together(costs: Sequence[CircuitCost]) -> CircuitCost:
    """Of runs one after another."""
    return CircuitCost(
        sum(each.passes for each in costs), sum(each.seconds for each in costs), max(each.memory for each in costs)
    )


def _cost(model: Model, pairs: Pairs, passes: float, *, batch: int, more: int = 0) -> CircuitCost:
    length, hidden = pairs.clean.shape[1], model.hf.config.get_text_config().hidden_size
    seconds = passes * len(pairs) * operations(model, length) * measure(model).per_operation
    # both sides of a batch: stream, MLP, operands, z and cache of every layer; and what runs at once
    held = 4 * model.n_layers * (2 * 8 * batch * length + 2 * TOKENS) * hidden
    return CircuitCost(passes * len(pairs), seconds, peak_memory() + held + more)
