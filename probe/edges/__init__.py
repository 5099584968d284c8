"""The edges room treats a model as a graph of writers and readers of the residual stream, and searches circuits in it.

It scores edges, cuts them exactly, and measures how much of an answer a set of edges keeps.
"""
