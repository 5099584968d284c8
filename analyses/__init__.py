"""Analyses: one finding per module, each with a scorer on tensors, a result, and a runner that feeds it from a model."""
