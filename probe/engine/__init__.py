"""The engine room runs a model through one attention function, and records, changes and captures what passes there.

It also reads and sets the residual stream and measures linear maps. It knows no library but transformers.
"""
