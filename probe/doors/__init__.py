"""The doors room opens a loaded model to other libraries, TransformerLens and nnsight, over the same weights.

`probe.wrap` makes a Model of what they have loaded already. The engine's attention runs behind each of them.
"""
