"""Models: loaded by name, taken apart, run."""
