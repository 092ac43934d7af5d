"""Values with their intervals, and tests: numpy in, numbers out. Knows of no model."""
