"""One task's mechanism set to work by hand on another task."""
