"""The circuit of a task as edges."""
