"""Interventions: small frozen records that change attention, applied with `model.intervene(...)`."""

from probe.interventions.base import AttentionCall, Intervention
from probe.interventions.prune import PruneHeads

__all__ = ["AttentionCall", "Intervention", "PruneHeads"]
