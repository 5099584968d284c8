"""Which interventions are there? The table says of each its formula, its settings and its needs, without torch.

Notation: i is a query, j a key, p_ij the weight of the key in the row of the query, v_j the value vector of the key,
and z_i = sum_j p_ij v_j the output of a head before the output projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.interventions.base import Intervention


class Needs(Enum):
    """The parts of attention that an intervention must be able to change; the value says it in words."""

    OPERANDS = "queries, keys and values before attention is computed"
    PATTERN = "attention whose kernel edits its pattern of weights"
    OUTPUTS = "the outputs z of the heads"
    PROMPT = "causal attention over the whole prompt in one pass"


@dataclass(frozen=True)
class Entry:
    """An intervention: its class as module:name in this room, what it does in a formula, its needs, and its settings.

    settings: field of the class -> what it means.
    """

    path: str
    formula: str
    needs: tuple[Needs, ...]
    settings: Mapping[str, str]

    def load(self) -> type[Intervention]:
        """Return the class."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(f"probe.interventions.{module}"), name)


def _on_heads(path: str, formula: str, *needs: Needs, **settings: str) -> Entry:
    return Entry(path, formula, needs, {"heads": "The heads to change, as (layer, head)"} | settings)


TABLE: dict[str, Entry] = {
    "prune": _on_heads(
        "prune:PruneHeads", "z_i = 0, or the mean of z over a reference run, or the mean of the visible v_j",
        Needs.OPERANDS, Needs.OUTPUTS,
        fill="What replaces the output: zero, mean (of a reference run) or uniform (even attention)",
        phase="Passes to change: all, or decode for those with a single query",
        rows="Rows of the batch to change; None is all",
        reference="Outputs to average for the fill mean, from `model.head_outputs`",
    ),
    "scale": _on_heads(
        "outputs:ScaleHeads", "z_i = g z_i", Needs.OUTPUTS,
        gates="The factor g: one number, or a tensor of one for each head, which gets gradients",
    ),
    "patch": _on_heads(
        "outputs:PatchHeads", "z_i = z_i of another run", Needs.OUTPUTS,
        source="Outputs of the other run, from `model.head_outputs`",
        positions="Positions to replace; None is all, for runs of the same length",
    ),
    "force": _on_heads(
        "force:ForceAttention", "p_ij = w_j on the keys and 0 elsewhere, in the rows of the queries", Needs.PATTERN,
        queries="Positions of the queries whose rows are set",
        keys="Positions of the keys that get the weight",
        weights="Weights w_j of the keys, which sum to one; None makes them equal",
    ),
    "redistribute": _on_heads(
        "redistribution:Redistribute",
        "p'_ij = k p_ij on the sources S, p_ij (1 + (1 - k) m_S / m_R) on the recipients R; m is a mass", Needs.PATTERN,
        sources="Positions of the keys that give attention away",
        recipients="Positions of the keys that receive it; None is every other key",
        kept="Share k of its weight that a source keeps, from 0 to 1",
        queries="Positions of the queries whose rows are changed; None is all",
    ),
    "calibrate": _on_heads(
        "calibrate:CalibrateSinks",
        "p'_ij = beta p_ij on the sinks of the head in this prompt; the other keys get the rest in proportion",
        Needs.PATTERN, Needs.PROMPT,
        beta="Share of its weight that a sink keeps, from 0 to 1",
        rule="Rule for sinks, by column means: absolute, alpha_over_n or alpha_times_uniform",
        threshold="Threshold of the rule",
        min_rows="Smallest number of queries that a column mean must be over",
        spare="Sink that is never calibrated: the first token, or the first flagged one",
        prefix="Number of positions from the start in which sinks are looked for; None is the whole prompt",
    ),
    "blend": Entry(
        "outputs:Blend", "z_i + g (z'_i - z_i), with z' of another intervention on the pattern",
        (Needs.PATTERN, Needs.OUTPUTS),
        {
            "edit": "The other intervention, which is then calculated beside the plain attention",
            "gates": "How far each head goes, g [layers, heads]; gets gradients",
        },
    ),
}  # fmt: skip
"""Name -> the intervention. A new intervention is a file and an entry here."""
