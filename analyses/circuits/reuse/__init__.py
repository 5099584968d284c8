"""How much of one task's circuit another task uses."""
