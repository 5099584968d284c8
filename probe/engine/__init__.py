"""The attention engine: one attention function inside the model, and what records, changes and captures through it."""
