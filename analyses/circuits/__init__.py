"""Circuits of tasks: as heads, as edges, compared between tasks, and used for a repair."""
