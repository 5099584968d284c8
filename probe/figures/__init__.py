"""The frame of every figure: an analysis returns plots; pages, notebooks and print give them size, theme and title."""

from probe.figures.plot import Plot

__all__ = ["Plot"]
