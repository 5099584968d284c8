"""The map of a statistic: one cell a head, one panel for each part of the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.figures.heads import map_figure

if TYPE_CHECKING:
    from probe.figures import Plot


def statistic_map(maps: Mapping[str, Tensor], *, statistic: str, unit: str, texts: int, headline: str) -> Plot:
    """Draw the mean of a statistic in every head: part -> [layers, heads], in `unit`."""
    panels = {statistic if len(maps) == 1 else f"{statistic}, {part}": values for part, values in maps.items()}
    plot = map_figure(
        panels, headline=headline, reading=f"one cell a head: mean over {texts} text{'s' * (texts != 1)}, in {unit}"
    )
    values = torch.cat([each.flatten() for each in maps.values()])
    most = 1.0 if unit == "share" else float(values.abs().nan_to_num(0).max()) or 1.0
    bar = {"title": {"text": f"{unit}<br>&nbsp;"}}
    # the map's scales end at 1, for shares; those of nats and tokens end at the largest value
    plot.figure.update_layout(
        coloraxis={"cmin": 0, "cmax": most, "colorbar": bar}, coloraxis2={"cmin": -most, "cmax": most, "colorbar": bar}
    )
    return plot
