"""Attention sinks, the massive activations behind them, and what these are for."""
