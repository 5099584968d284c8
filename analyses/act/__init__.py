"""Attention calibration (ACT) on a classification task, beside its controls."""
