"""Data sets and tiny models that need no download."""
