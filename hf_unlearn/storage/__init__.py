"""Files that are written whole or not at all, encrypted, or known by their digest. Knows of no model and no request."""
