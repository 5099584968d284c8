"""Analyses: one finding per module: a scorer on tensors, a result, and a runner that feeds the scorer from a model."""
