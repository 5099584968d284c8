"""Which heads a stage keeps."""

from __future__ import annotations

import torch

from probe.analyses.circuits.end_attention import EndAttention
from probe.analyses.circuits.search.stages import stage_table
from probe.heads import Head
from probe.patching.effects import Effects


def test_a_stage_keeps_the_largest_effects_that_are_more_than_noise():
    clean, corrupted = torch.zeros(4), torch.full((4,), -10.0)
    patched = torch.tensor(
        [[-5.0, -5, -5, -5], [0.5, 0.5, 0.4, 0.6], [-9, 9, -9, 8], [-0.05, -0.05, -0.05, -0.05], [2, 2, 2, 1.9]]
    )
    heads = tuple(Head(0, head) for head in range(5))
    attention = EndAttention(torch.zeros(1, 5, 2), ("first token", "elsewhere"))
    table = stage_table(Effects(heads, patched, clean, corrupted), "logits", attention, keep=2)
    assert table["percent"].round(2).tolist() == [50.0, -5.0, 2.5, 0.5, -19.75]
    assert table.query("kept")["name"].tolist() == ["L0H0", "L0H4"]
    table = stage_table(Effects(heads, patched, clean, corrupted), "logits", attention, keep=5)
    assert table.query("kept")["name"].tolist() == ["L0H0", "L0H1", "L0H4"]  # L0H2 is noise, L0H3 too small
