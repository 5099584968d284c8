"""Other libraries over the same weights: TransformerLens, nnsight, and models that they have loaded already."""
