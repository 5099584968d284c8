"""Analyses: one finding per module, each with a scorer on tensors, a result, and a runner that feeds one from a model."""
