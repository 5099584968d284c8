"""The circuit of a task as heads, stage by stage from the logits backwards."""
