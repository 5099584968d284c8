"""The patching room asks what a part of a model does: values of a corrupted run take its place in the clean run.

Parts are heads, MLPs, inputs of attention and the stream; effects are changes of the logit difference. Paths between
parts are in edges/.
"""
