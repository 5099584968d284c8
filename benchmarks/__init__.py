"""Side-by-side measurements: what statistics cost, against plain attention and against the ways others offer."""
